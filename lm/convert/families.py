"""The model families that can be imported and exported, and which of them reads or holds a model."""

import contextlib
import dataclasses
import re
from collections.abc import Collection, Mapping

from lm.config import ModelConfig
from lm.config.checks import MAX, MAX_EXPERTS, MAX_LAYERS, MAX_MTP
from lm.convert.deepseek import DEEPSEEK
from lm.convert.deepseek_sparse import DEEPSEEK_SPARSE
from lm.convert.dense_families import ERNIE, GLM, GLM4, GRANITE, HUNYUAN, NEMOTRON, SEED_OSS
from lm.convert.essence import lacks
from lm.convert.gemma import GEMMA2, GEMMA3
from lm.convert.gemma3n import GEMMA3N
from lm.convert.gpt2 import GPT2
from lm.convert.hybrids import LFM2, QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from lm.convert.ideas import missing
from lm.convert.llama import LLAMA
from lm.convert.llama4 import LLAMA4
from lm.convert.mamba import BAMBA, GRANITE_HYBRID, NEMOTRON_H
from lm.convert.multimodal.families import IDEFICS3, LLAVA, SMOLVLM, VOXTRAL
from lm.convert.positional import COHERE, COHERE2, EXAONE4, MINISTRAL3, MISTRAL3, SMOLLM3
from lm.convert.relatives import MINISTRAL, MISTRAL, MIXTRAL, OLMO2, OLMO3, PHI3, QWEN2, QWEN3, QWEN3_MOE
from lm.convert.rows import Family
from lm.convert.sparse_families import ERNIE_MOE, GLM4_MOE, GPT_OSS, GRANITE_MOE, HUNYUAN_MOE
from lm.errors import UserError
from lm.files.untrusted import short
from lm.runs.own_code import own_parts

# Export tries the families in this order.
TEXT = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, MIXTRAL, QWEN3_MOE, GEMMA2, GEMMA3, OLMO2, DEEPSEEK, GPT2, LFM2, QWEN3_NEXT, BAMBA),
    *(SMOLLM3, OLMO3, GRANITE, SEED_OSS, ERNIE, EXAONE4, COHERE, COHERE2, GLM, GLM4, HUNYUAN, NEMOTRON),
    *(MINISTRAL, MINISTRAL3, MISTRAL3, GPT_OSS, GLM4_MOE, GRANITE_MOE, ERNIE_MOE, HUNYUAN_MOE, GRANITE_HYBRID, NEMOTRON_H),
    *(LLAMA4, QWEN3_5, QWEN3_5_MOE, GEMMA3N, DEEPSEEK_SPARSE),
)
ALL = (*TEXT, IDEFICS3, SMOLVLM, LLAVA, VOXTRAL)
SECTIONS = ("text_config", "vision_config", "audio_config")  # of the config.json of a model that sees or hears
CLASSIFIER = "ForSequenceClassification"
# Keys of config.json by which lists are made, or arrays, and their largest values.
MAX_OF = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "max_window_layers", "first_k_dense_replace"), MAX_LAYERS),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts"), MAX_EXPERTS),
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers"), MAX_MTP),
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "n_embd", "intermediate_size", "n_inner", "num_attention_heads", "n_head"), MAX
    ),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "max_position_embeddings", "n_positions", "sliding_window"), MAX),
}
FAMILIES = {model_type: family for family in ALL for model_type in family.model_types}


def family_of(hf: Mapping) -> Family:
    """Return the family that reads this config.json."""
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        ideas = missing(hf)
        lacking = f"; it needs {', '.join(ideas)}, which is missing here" if ideas else ""
        raise UserError(f"model_type={short(model_type)} in config.json is none of {', '.join(FAMILIES)}{lacking}")
    return FAMILIES[model_type]


def model_config(hf: Mapping, names: Collection[str]) -> ModelConfig:
    """Return the ModelConfig of a checkpoint with this config.json and these tensor names, canonical or not.

    DeepSeek-V3's config announces multi-token prediction modules, but some checkpoints lack them. A sequence classifier with
    one label is a reward model. It has no head, so ours is tied to the embedding.
    """
    family = family_of(hf)
    for section in (hf, *(hf[name] for name in SECTIONS if isinstance(hf.get(name), Mapping))):
        for key, most in MAX_OF.items():
            value = section.get(key)
            sizes = value if key == "intermediate_size" and isinstance(value, list) else [value]  # Gemma 3n: of each layer
            if value is not None and not all(type(size) is int and 0 <= size <= most for size in sizes):
                raise UserError(
                    f"config.json holds a value of the wrong kind: {key}={short(value)} must be a whole number in 0…{most}"
                )
    try:
        config = family.from_hf(hf)
        labels = len(hf.get("id2label") or ()) or hf.get("num_labels") or 1
        classifies = _is_classifier(hf, names)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise UserError(f"config.json holds a value of the wrong kind: {type(error).__name__}: {error}") from None
    if config.mtp_depth:
        names = set(map(family.canonical, names))
        if not any(row.theirs in names for row in family.ends(config) if row.ours.startswith("mtp.")):
            config = dataclasses.replace(config, mtp_depth=0)
    if classifies:
        if labels != 1:
            raise UserError(f"config.json describes a classifier with {labels} labels: only one label (a reward model) works")
        config = dataclasses.replace(config, score_head="reward", tie_embeddings=True)
    return config


def _is_classifier(hf: Mapping, names: Collection[str]) -> bool:
    classes = hf.get("architectures") or ()
    return any(name.endswith(CLASSIFIER) for name in classes) if classes else "score.weight" in names


def config_json(family: Family, config: ModelConfig) -> dict:
    """Return config.json's content for a language model, or for a reward model as a sequence classifier with one label."""
    hf = family.to_hf(config)
    if config.score_head != "reward":
        return hf
    named = re.sub("(ForCausalLM|LMHeadModel)$", CLASSIFIER, hf["architectures"][0])
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # transformers derives num_labels from these
    return {**hf, "architectures": [family.classifier or named], **labels}


def is_ignored(family: Family, config: ModelConfig, name: str) -> bool:
    """Return whether a tensor of a checkpoint (canonical name) is not imported."""
    if config.tie_embeddings and name.endswith("lm_head.weight"):
        return True
    unused = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.[kv]_(proj|norm)\..*", name)
    if unused and config.num_layers - config.shared_kv_layers <= int(unused[1]) < config.num_layers:
        return True
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def family_for(config: ModelConfig, origin: str | None = None) -> Family:
    """Return the family that a model is exported as: its config.json, read back, gives the same model.

    origin: the model_type of the import, which is tried first. Raises: UserError if no family holds the model.
    """
    if config.mup_base_dim:
        raise UserError(f"model.mup_base_dim={config.mup_base_dim} cannot be exported: no family has μP's multipliers")
    for key, value in own_parts(config).items():
        raise UserError(f"{key}={value} cannot be exported: other programs do not have this file")
    first, losses = [FAMILIES[origin]] if origin in FAMILIES else [], []
    for family in (*first, *ALL):
        with contextlib.suppress(UserError):
            lost = lacks(family, config)
            if not lost:
                return family
            losses.append((len(lost), family.name, ", ".join(lost)))
    _, name, lost = min(losses, key=lambda loss: loss[0])
    raise UserError(f"no published family has this model: {name}, the nearest, lacks {lost}")
