"""Knowledge and reasoning: the usual benchmarks, by likelihood."""

from configs.evaluate import default


def get_config():
    config = default.get_config()
    config.tasks = (
        "mmlu,hellaswag,arc_easy,arc_challenge,piqa,winogrande,openbookqa,boolq,lambada,truthfulqa_mc1,truthfulqa_mc2"
    )
    return config
