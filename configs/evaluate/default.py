"""Default values of all keys of an evaluation. The other files here are selections of tasks."""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.checkpoint = placeholder(str)  # a workdir, a Hugging Face folder or a GGUF file
    config.tasks = ""  # comma-separated: names in lm/evals/tasks/specs, FILE.yaml, harness:NAME, harness:FILE.yaml
    config.data_dir = placeholder(str)  # items are DIR/<task>/*.{csv,jsonl,parquet}

    # These keys work like lm-evaluation-harness's options of the same name.
    config.num_fewshot = placeholder(int)  # examples before each item; none: the task's own number
    config.limit = placeholder(float)  # maximum items of each task, from the start; below 1: a share of them
    config.chat_template = ""  # "": plain prompts; own: the model's template; plain: "User: …"; or a Jinja file
    config.fewshot_as_multiturn = False  # with a chat template: send examples as separate turns
    config.system_instruction = ""  # system message before every item; "": none
    # Most tokens of the thought `<think>…</think>` before an answer, beside those of the answer. Several: each task runs with
    # each of them, as "TASK@TOKENS", and the report has a curve. (): no limit but that of the answer.
    config.thought_budgets = ()
    config.seed = 1234  # for drawing examples and for sampling

    config.judge = "rules"  # for tasks with a judge: rules, refusal, classifier:FOLDER, openai:URL
    config.options = ""  # YAML: settings of tasks by kind, such as "redteam: {families: [direct, rot13]}"

    config.dtype = placeholder(str)  # of matrix products: bfloat16, float32; none: as in training
    config.max_length = placeholder(int)  # maximum tokens that the model reads; none: the model's positions
    config.batch_tokens = placeholder(int)  # token slots of a batch; none: chosen for the device
    config.cache = True  # keep answers in WORKDIR/answers.sqlite and reuse them
    config.mesh = ml_collections.ConfigDict()  # devices along each axis; -1: the remaining devices
    config.mesh.stage = 1  # layers and batch split: a pipeline (model.pipeline)
    config.mesh.data = -1  # batch split, parameters whole
    config.mesh.fsdp = 1  # batch and parameters split
    config.mesh.tensor = 1  # heads and hidden units split
    config.mesh.expert = 1  # experts and batch split
    config.mesh.slices = placeholder(int)  # groups of devices with a fast network inside; None: as TPUs and GPUs report

    config.compare = placeholder(str)  # folders of other evaluations, comma-separated; exit code 1 if this one is worse
    config.compare_alpha = 0.05  # worse: p-value below this, after Holm's correction,
    config.compare_tolerance = 0.0  # and a change larger than this, in the metric's own units
    config.contamination = placeholder(str)  # a training run or text files to search for the items
    config.export_failures = placeholder(str)  # folder for failed items in align.py's formats
    return config
