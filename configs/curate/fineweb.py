"""FineWeb (Penedo et al. 2024): addresses, language, Gopher, C4 without end marks, own rules, near duplicates, personal data.

Language scores here are py3langid's, not fastText's, for which the threshold was chosen.
"""

from configs.curate import default


def get_config():
    config = default.get_config()
    config.stages = "urls,opt_outs,unicode,language,gopher_repetition,gopher_quality,c4,fineweb_quality,near_duplicates,pii"
    config.c4.end_marks = ()
    config.near_duplicates.bands, config.near_duplicates.rows, config.near_duplicates.threshold = 14, 8, 0.0
    config.pii.style = "fineweb"
    config.pii.kinds = ("email", "ip")
    default.urls(config.rules)
    config.rules.opt_out_noai = (0, 0)
    config.rules.language = ("en",)
    config.rules.language_score = (0.65, 1)
    default.gopher_repetition(config.rules)
    default.gopher_quality(config.rules)
    default.c4(config.rules, sentences=5)
    default.fineweb_quality(config.rules)
    config.rules.near_duplicate_keep = (1, 1)
    return config
