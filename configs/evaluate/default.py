"""Every key of an evaluation. The files beside it are choices of tasks."""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.checkpoint = placeholder(str)  # a workdir or a Hugging Face folder
    config.tasks = ""  # names, separated by commas: files of lm/evals/tasks/specs, FILE.yaml, harness:NAME, harness:FILE.yaml
    config.data_dir = placeholder(str)  # items are DIR/<task>/*.{csv,jsonl,parquet}

    # These do what lm-evaluation-harness's options of the same name do.
    config.num_fewshot = placeholder(int)  # examples before each item; none: as the task says
    config.limit = placeholder(float)  # items of each task, the first ones; below 1: a share of them
    config.chat_template = ""  # "": prompts are plain; own: the model's own; plain: "User: …"; or a Jinja file
    config.fewshot_as_multiturn = False  # with a chat template: examples are turns of their own
    config.system_instruction = ""
    config.seed = 1234  # of what examples are drawn and of what is sampled

    config.judge = "rules"  # where a task asks one: rules, classifier:FOLDER, openai:URL
    config.options = ""  # YAML: what tasks of a kind are to do otherwise, such as "redteam: {families: [direct, rot13]}"

    config.dtype = placeholder(str)  # of matrix products: bfloat16, float32; none: as the model was trained
    config.max_length = placeholder(int)  # tokens that the model reads at most; none: what it was made for
    config.batch_tokens = placeholder(int)  # token slots of a batch; none: as fits the device
    config.cache = True  # keep answers in WORKDIR/answers.sqlite, so that what was asked is not asked again
    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=1, expert=1))

    config.compare = placeholder(str)  # folders of other evaluations, separated by commas; exit code 1 if this one is worse
    config.compare_alpha = 0.05  # worse: with a p-value below this, after Holm's correction,
    config.compare_tolerance = 0.0  # and by more than this, in the metric's own units
    config.contamination = placeholder(str)  # a training run, or text files: are the items in them?
    config.export_failures = placeholder(str)  # folder for failed items, as align.py takes them
    return config
