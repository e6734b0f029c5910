"""The text of `make demo`: code and docs of this Python installation, without copies, tables, generated files and addresses."""

from configs.curate import default


def get_config():
    config = default.get_config()
    config.input = "builtin:python"
    config.read.max_bytes = 6_000_000
    config.stages = "unicode,code,exact_duplicates,near_duplicates,pii"
    config.near_duplicates.threshold = 0.8
    config.pii.kinds = ("secret", "email", "ip")
    # Bounds of configs/curate/code.py that suit prose too; lines of prose may be long.
    config.rules.code_letters = (0.25, 1)
    config.rules.code_longest_line = (0, 5000)
    config.rules.code_xml = (0, 0)
    config.rules.duplicate_keep = (1, 1)
    config.rules.near_duplicate_keep = (1, 1)
    return config
