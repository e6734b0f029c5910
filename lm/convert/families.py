"""The model families that can be imported and exported. A family is a module of this folder:

MODEL_TYPES    the `model_type`s of the configs it reads
from_hf(hf)    config.json's content -> ModelConfig; missing keys get the defaults of transformers' class
to_hf(config)  the inverse
rows(config, kind), ends(config)    the tables of weights: of one layer of a kind, and of the rest (lm/convert/rows.py)
encoder_tables(config)    optional: (section of the config, rows of one of its layers) for images and for speech
ignored        regular expressions of tensors that are not imported
canonical(name)    optional: the row's name of a tensor that is published under several names
copies(config)     optional: rows of parameters that a checkpoint holds twice; written, but not read
CLASSIFIER         optional: the class of its sequence classifiers, if it is not named like its language models
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

from lm.config import ModelConfig
from lm.config.checks import MAX, MAX_EXPERTS, MAX_LAYERS, MAX_MTP
from lm.convert import deepseek, gemma2, gemma3, gpt2, llama, mistral, mixtral, olmo2, phi3, qwen2, qwen3, qwen3_moe
from lm.convert.essence import essence
from lm.convert.multimodal import idefics3, llava, smolvlm, voxtral
from lm.convert.rows import Row
from lm.errors import UserError
from lm.files.untrusted import short

# Export tries the families in this order.
TEXT = (llama, mistral, qwen2, qwen3, phi3, mixtral, qwen3_moe, gemma2, gemma3, olmo2, deepseek, gpt2)
ALL = (*TEXT, idefics3, smolvlm, llava, voxtral)
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
FAMILIES = {model_type: family for family in ALL for model_type in family.MODEL_TYPES}


def family_of(hf: Mapping):
    """Return the family that reads this config.json."""
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"model_type={short(model_type)} in config.json is none of {', '.join(FAMILIES)}")
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
            if value is not None and not (type(value) is int and 0 <= value <= most):
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
        names = {canonical(family, name) for name in names}
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


def config_json(family, config: ModelConfig) -> dict:
    """Return config.json's content for a language model, or for a reward model as a sequence classifier with one label."""
    hf = family.to_hf(config)
    if config.score_head != "reward":
        return hf
    named = re.sub("(ForCausalLM|LMHeadModel)$", CLASSIFIER, hf["architectures"][0])
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # transformers derives num_labels from these
    return {**hf, "architectures": [getattr(family, "CLASSIFIER", named)], **labels}


def canonical(family, name: str) -> str:
    """Return a published tensor's name in the form of the family's rows."""
    return family.canonical(name) if hasattr(family, "canonical") else name


def copies(family, config: ModelConfig) -> list[Row]:
    return family.copies(config) if hasattr(family, "copies") else []


def is_ignored(family, config: ModelConfig, name: str) -> bool:
    """Return whether a tensor of a checkpoint (canonical name) is not imported."""
    if config.tie_embeddings and name.endswith("lm_head.weight"):
        return True
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def family_for(config: ModelConfig):
    """Return the first family that can hold this model: its config.json, read back, gives the same model."""
    if config.mup_base_dim:
        raise UserError(f"model.mup_base_dim={config.mup_base_dim} cannot be exported: no family has μP's multipliers")
    wanted, losses = essence(config), []
    for family in ALL:
        try:
            read = essence(family.from_hf(family.to_hf(config)))
        except UserError:
            continue
        lost = [key for key in wanted if read[key] != wanted[key]]
        if not lost:
            return family
        losses.append((len(lost), family.MODEL_TYPES[-1], ", ".join(f"model.{key}={wanted[key]!r}" for key in sorted(lost))))
    _, name, lost = min(losses, key=lambda loss: loss[0])
    raise UserError(f"no published family has this model: {name}, the nearest, lacks {lost}")
