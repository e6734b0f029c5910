"""The safety loop: a model is attacked, its failures are criticised and revised, it learns from that, and is attacked again.

Set --config.init_from, and --config.safety.prompts for another domain than the built-in toy world. See docs/align.md.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs.align import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.method = "safety"
    config.safety = safety_keys()
    config.rollout.max_new_tokens = 128  # of each answer that is judged
    config.preference.nll_weight = 0.1
    return config


def safety_keys() -> ml_collections.ConfigDict:
    safety = ml_collections.ConfigDict()
    safety.rounds = 1  # of attack, revision and training; a finished run goes on if there are more
    safety.constitution = placeholder(str)  # YAML; none: lm/align/safety/constitution.yaml
    safety.prompts = "builtin:safety_world"  # or files: JSONL, Parquet, CSV such as those of AdvBench, HarmBench, XSTest
    safety.valid_fraction = 0.5  # of the requests of files: measured on, and never learnt from
    safety.failures = placeholder(str)  # attempts that failed before (a failing.jsonl), to learn from beside the others
    safety.limit = 200  # requests of each kind, to learn from and to measure on
    safety.text = placeholder(str)  # held-out text (files) whose bits per byte are reported
    safety.text_bytes = 100_000  # of it, at most
    safety.keep = placeholder(str)  # text or conversations that are learnt along, so that nothing is forgotten
    safety.keep_share = 0.2  # of what is learnt

    # Families of lm/evals/redteam/attacks.py, separated by commas, alone or composed: rot13+prefix_injection.
    safety.train_families = "direct,role_play,prefix_injection,rot13,prompt_injection"  # failures under these are learnt from
    safety.held_out_families = "refusal_suppression,leetspeak,translation,many_shot,crescendo"  # these only measure
    safety.samples = 1  # answers to each attack
    safety.temperature = 0.0  # of the answers; 0: the likeliest

    safety.judge = "rules"  # or classifier:FOLDER (lm/evals/judges/classifier.py), or openai:URL
    safety.judge_model = ""  # its name at the URL
    safety.reviser = "template"  # the constitution's own words; model: it criticises itself; or openai:URL
    safety.reviser_model = ""
    safety.compare = False  # also ask the reviser which answer it prefers, and make pairs of what it agrees with alone
    safety.key_variable = "OPENAI_API_KEY"  # environment variable that holds the key of an endpoint
    safety.timeout = 60.0  # seconds for an answer of an endpoint
    safety.retries = 3

    # What the two stages of training change of the keys above.
    safety.sft = ml_collections.ConfigDict({"steps": 100, "batch_size": 16, "learning_rate": 2e-5})
    safety.dpo = ml_collections.ConfigDict({"steps": 50, "batch_size": 8, "learning_rate": 1e-6})  # steps 0: left out
    return safety
