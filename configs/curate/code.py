"""Source files: NeMo Curator's bounds on comments, lines and letters, StarCoder's on long lines and copies (Li et al. 2023)."""

from configs.curate import default


def get_config():
    config = default.get_config()
    config.read.format = "code"
    config.stages = "code,exact_duplicates,near_duplicates"
    config.near_duplicates.threshold = 0.7
    config.rules.code_comments = (0.01, 0.85)
    config.rules.code_lines = (10, 20_000)
    config.rules.code_letters = (0.25, 1)
    config.rules.code_longest_line = (0, 1000)
    config.rules.code_mean_line = (0, 100)
    config.rules.code_xml = (0, 0)
    config.rules.duplicate_keep = (1, 1)
    config.rules.near_duplicate_keep = (1, 1)
    return config
