"""The safety loop: attack a model, criticise and revise its failures, train on the revisions, and attack it again.

Set --config.init_from. Set --config.safety.prompts for a domain other than the built-in toy world. See docs/align.md.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs.align import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.method = "safety"
    config.safety = safety_keys()
    config.rollout.max_new_tokens = 128  # per judged answer
    config.preference.nll_weight = 0.1
    return config


def safety_keys() -> ml_collections.ConfigDict:
    safety = ml_collections.ConfigDict()
    safety.rounds = 1  # rounds of attack, revision and training; raise it to continue a finished run
    safety.constitution = placeholder(str)  # YAML file; default: lm/align/safety/constitution.yaml
    safety.prompts = "builtin:safety_world"  # or files: JSONL, Parquet, CSV such as those of AdvBench, HarmBench, XSTest
    safety.valid_fraction = 0.5  # fraction of the requests in files held out for evaluation, never trained on
    safety.failures = placeholder(str)  # failures of another run (its failing.jsonl), added to the training requests
    safety.limit = 200  # requests of each kind, for training and for evaluation
    safety.text = placeholder(str)  # files of held-out text; its bits per byte are reported
    safety.text_bytes = 100_000  # limit on that text
    safety.keep = placeholder(str)  # text or conversations added to the training data against forgetting
    safety.keep_share = 0.2  # their share of the training conversations
    safety.harmless_share = 0.0  # at least this share of harmless examples, repeated if few; raise it against over-refusal

    # Attack families of lm/evals/redteam/attacks.py, separated by commas, alone or composed: rot13+prefix_injection.
    safety.train_families = "direct,role_play,prefix_injection,rot13,prompt_injection"  # their failures are trained on
    safety.held_out_families = "refusal_suppression,leetspeak,translation,many_shot,crescendo"  # for evaluation only
    safety.samples = 1  # answers per attack
    safety.temperature = 0.0  # of the answers; 0: greedy

    # rules: needs plain consent or refusal; refusal: harmful unless it refuses; classifier:FOLDER
    # (lm/evals/judges/classifier.py); or openai:URL
    safety.judge = "rules"
    safety.judge_model = ""  # model name for openai:URL
    safety.reviser = "template"  # texts of the constitution; model: the model criticises itself; or openai:URL
    safety.reviser_model = ""
    safety.key_variable = "OPENAI_API_KEY"  # environment variable with the API key of the endpoint
    safety.timeout = 60.0  # seconds per request to an endpoint
    safety.retries = 3

    # Keys of the two training stages that replace those above.
    safety.sft = ml_collections.ConfigDict({"steps": 100, "batch_size": 16, "learning_rate": placeholder(float)})
    safety.dpo = ml_collections.ConfigDict({"steps": 50, "batch_size": 8, "learning_rate": placeholder(float)})  # steps=0: skip
    return safety
