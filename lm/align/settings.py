"""Check the settings of an alignment run. This module does not import JAX, so errors appear at once."""

import math

from lm.errors import UserError

METHODS = ("sft", "preference", "reward", "rl", "distill")  # run by lm/align/run.py
LOOPS = ("best_of", "safety")  # methods that call lm/align/run.py once or several times
CONFIGS = ("dpo", "kto", "orpo", "grpo", "ppo")  # names of methods that are configs, each a loss of a method
# The values of a key. A section of the config has the name of the method that reads it.
CHOICES = {
    "sft.loss": ("nll", "dft"),
    "preference.loss": ("dpo", "robust", "hinge", "ipo", "apo_zero", "apo_down", "orpo", "simpo", "kto"),
    "reward.kind": ("outcome", "process"),
    "rl.algorithm": ("grpo", "rloo", "ppo"),
    "rl.loss": ("grpo", "bnpo", "dr_grpo", "dapo", "gspo"),  # how token losses are averaged (lm/align/rl/objective.py)
    "rl.scale": ("group", "batch", "none"),
    "rl.kl": ("k1", "k2", "k3"),
    "rl.correction": ("none", "token", "sequence"),
    "distill.kind": ("logits", "on_policy"),
    "distill.divergence": ("forward", "reverse", "jsd"),
    "distill.across": ("gold", "uld"),
    "best_of.keep": ("best", "all"),
}
TASK_ROWS = 32  # rollouts of a batch, where the config names no batch_size


def check(config) -> None:
    """Raise UserError for settings that are wrong whatever the data and the model."""
    if config.method not in (*METHODS, *LOOPS):
        named = f"; for {config.method} use --config=configs/align/{config.method}.py" if config.method in CONFIGS else ""
        raise UserError(f"method={config.method!r} is none of {', '.join((*METHODS, *LOOPS))}{named}")
    if not config.init_from:
        raise UserError("init_from is missing: name the model to start from, a workdir, a Hugging Face folder or a GGUF file")
    if not config.data.input and config.method != "safety":
        raise UserError("data.input is missing: name a file of examples, or a built-in task such as builtin:arithmetic")
    if config.method in ("rl", "best_of") and not config.rewards:
        raise UserError("rewards is empty: name reward functions, such as --config.rewards=answer=1")
    check_environment(config)
    check_thoughts(config.rollout)
    if config.mesh.get("context", 1) != 1:
        check_split(config)
    check_method(config)


def check_method(config) -> None:
    """Raise UserError if the section of the method is invalid."""
    for key, known in CHOICES.items():
        section, name = key.split(".")
        if section == config.method and (value := config[section][name]) not in known:
            raise UserError(f"{key}={value!r} is none of {', '.join(known)}")
    if config.method == "rl":
        check_rl(config)
    elif config.method == "distill":
        check_distill(config.distill)
    elif config.method == "best_of":
        check_best_of(config.best_of)


def check_environment(config) -> None:
    """Raise UserError if an environment and its reward do not come together, or tools are given beside it."""
    rollout, asked = config.rollout, [part.strip().split("=")[0] for part in config.rewards.split(",")]
    if rollout.environment and rollout.tools:
        raise UserError(
            f"rollout.tools={tuple(rollout.tools)} and rollout.environment={rollout.environment!r}: set one of them, because "
            "an environment answers all calls"
        )
    if "environment" in asked and not rollout.environment:
        raise UserError("rewards=environment reads the rewards of an environment: set rollout.environment, such as stockroom")


def check_thoughts(rollout) -> None:
    """Raise UserError for a budget of thoughts that leaves no token for an answer."""
    budget = rollout.get("thought_budget")
    if budget is not None and not 0 <= budget < rollout.max_new_tokens:
        raise UserError(
            f"rollout.thought_budget={budget} must be at least 0 and below rollout.max_new_tokens={rollout.max_new_tokens}, "
            "because the answer needs tokens, too"
        )


def check_split(config) -> None:
    """Raise UserError if the method cannot train on sequences that are split over a mesh's context axis."""
    key = f"mesh.context={config.mesh.context}"
    if config.method in LOOPS or example_kind(config) == "task":
        raise UserError(
            f"{key} splits sequences, and method={config.method} writes answers, which it cannot split: set mesh.context=1 "
            "and spread the model with mesh.fsdp or mesh.tensor"
        )
    if config.method == "sft" and config.sft.neftune_alpha:
        raise UserError(
            f"{key} splits sequences, and the noise of sft.neftune_alpha={config.sft.neftune_alpha} needs whole ones: "
            "set mesh.context=1 or sft.neftune_alpha=0"
        )


def example_kind(config) -> str:
    """Return the kind of example that the method reads (data/chat/conversations.py)."""
    if config.method == "sft":
        return "conversation"
    if config.method == "preference":
        return "labelled" if config.preference.loss == "kto" else "pair"
    if config.method == "reward":
        return "steps" if config.reward.kind == "process" else "pair"
    if config.method == "distill":
        return "task" if config.distill.kind == "on_policy" else "conversation"
    return "task"


def title(config) -> str:
    """Return the usual name of the method, such as dpo or grpo."""
    if config.method == "preference":
        return config.preference.loss
    if config.method == "rl":
        return config.rl.algorithm
    return config.method


def score_head(config) -> str:
    """Return the score head that the method needs: "reward", "value" or "none"."""
    if config.method == "reward":
        return "reward"
    return "value" if config.method == "rl" and config.rl.algorithm == "ppo" else "none"


def check_rl(config) -> None:
    """Raise UserError for numbers of rollouts that make no groups, minibatches or slices."""
    rl, rows = config.rl, config.batch_size or TASK_ROWS
    if rl.group_size < 1 or (rl.algorithm != "ppo" and rl.group_size < 2):
        raise UserError(f"rl.group_size={rl.group_size} must be at least 2: answers to a prompt are compared with one another")
    if rows % rl.group_size:
        raise UserError(f"batch_size={rows} rollouts are no multiple of rl.group_size={rl.group_size}")
    if rl.epochs < 1 or rl.minibatches < 1 or config.accumulate < 1 or rows % (rl.minibatches * config.accumulate):
        raise UserError(
            f"batch_size={rows} rollouts cannot be split into rl.minibatches={rl.minibatches} of "
            f"accumulate={config.accumulate} slices"
        )
    if rl.max_lag < 0:
        raise UserError(f"rl.max_lag={rl.max_lag} must be 0 or more")
    if rl.sampling_devices and not rl.max_lag:
        raise UserError(
            f"rl.sampling_devices={rl.sampling_devices} would be idle while others train: set rl.max_lag=1, or leave it out"
        )
    if rl.max_lag and rl.require_equal:
        raise UserError(
            f"rl.max_lag={rl.max_lag} samples with older parameters than those that are trained, so rl.require_equal=True "
            "cannot hold: set one of them"
        )
    if rl.max_lag and rl.correction == "none":
        raise UserError(
            f"rl.max_lag={rl.max_lag} samples with older parameters than those that are trained: correct the loss for it with "
            "rl.correction=token or sequence"
        )


def check_distill(distill) -> None:
    """Raise UserError if the section config.distill is invalid for any teacher."""
    if not 0 <= distill.mix <= 1:
        raise UserError(f"distill.mix={distill.mix} must be between 0 (the targets alone) and 1 (the teacher alone)")
    if not 0 <= distill.unshared < math.inf:
        raise UserError(f"distill.unshared={distill.unshared} must be a weight of 0 or more")
    if not distill.temperature > 0:
        raise UserError(f"distill.temperature={distill.temperature} must be positive")
    if distill.divergence == "jsd" and not 0 < distill.beta < 1:
        raise UserError(
            f"distill.beta={distill.beta} must be above 0 and below 1; for 0 and 1 use distill.divergence=forward and reverse"
        )
    if not distill.teacher:
        raise UserError("distill.teacher is not set: name a workdir, a Hugging Face folder or a GGUF file")


def check_best_of(best_of) -> None:
    """Raise UserError if the section config.best_of is invalid."""
    if best_of.n < 2:
        raise UserError(f"best_of.n={best_of.n} must be at least 2: answers to a prompt are compared with one another")
    if best_of.rows < 1:
        raise UserError(f"best_of.rows={best_of.rows} must be positive")
    if math.isnan(best_of.threshold):
        raise UserError("best_of.threshold=nan must be a number, or -inf for none")
