"""DCLM-Baseline's heuristics (Li et al. 2024): Gopher's rules, then its own on lines; without its learned classifier."""

from configs.curate import default


def get_config():
    config = default.get_config()
    config.stages = "language,gopher_quality,gopher_repetition,dclm_lines"
    config.rules.language = ("en",)
    config.rules.language_score = (0.65, 1)
    default.gopher_quality(config.rules)
    default.gopher_repetition(config.rules)
    config.rules.dclm_removed_words = (0, 0.05)
    return config
