"""One step of each method beside TRL's: the same tiny Llama, the same batch, their loss, what they log, and their gradients."""

import functools
import json

import jax
import numpy as np
import pytest

from lm.align import preference, reward, sft
from lm.align.rl import advantages
from lm.align.rl import objective as rl
from lm.align.rl.stream import reward_metrics
from lm.convert.families import config_json, family_for
from lm.model.transformer import skeleton
from lm.runs.checkpoint import named, plain
from lm.train.step import model_config_of
from tests.lm.align.batches import align_config, measured
from tests.lm.examples import parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
save_file = pytest.importorskip("safetensors.numpy").save_file
tensors_of = pytest.importorskip("tests.lm.convert.test_families").tensors_of

PAD, END, B = 0, 1, 4
KEY = jax.random.key(0)
COMMON = dict(
    per_device_train_batch_size=B,
    max_steps=1,
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)


@functools.cache
def policy(score_head: str = "none"):
    """(ModelConfig, parameters)."""
    config = model_config_of(align_config(model=dict(score_head=score_head)))
    return config, parameters(config, 0, 6.0)


@functools.cache
def reference():
    return parameters(policy()[0], 7, 6.0)


def theirs_of(config, params) -> dict[str, np.ndarray]:
    """Parameters, or a gradient, by the names and in the layout of transformers."""
    arrays = {name: np.asarray(x) for name, x in named(plain(params)).items()}
    return tensors_of(family_for(config), config, arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    @functools.cache
    def written(name: str):
        config, params = policy("reward" if name == "reward" else "none")
        params = reference() if name == "reference" else params
        path = tmp_path_factory.mktemp(name)
        save_file(theirs_of(config, params), path / "model.safetensors", {"format": "pt"})
        ids = dict(pad_token_id=PAD, eos_token_id=END, bos_token_id=None)
        (path / "config.json").write_text(json.dumps({**config_json(family_for(config), config), **ids}))
        return str(path)

    return written


def their_model(folder: str, kind=None):
    torch.set_num_threads(1)
    return (kind or transformers.AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)


@functools.cache
def tokenizer():
    """Words w2 … w63 stand for themselves."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w2"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"w{PAD}", eos_token=f"w{END}")


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(f"w{i} " for i in rng.integers(2, 64, rng.integers(2, 7))) for _ in range(count)]


def dataset(**columns):
    return datasets.Dataset.from_dict(columns)


def step_of(trainer, inputs=None):
    """(loss, what is logged, gradients by name, inputs) of a trainer's own batch, or of `inputs`."""
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))) if inputs is None else inputs
    given = dict(inputs)
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    gradients = {name: p.grad.numpy() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), logged, gradients, given


def rows_of(ids, real, trained) -> dict[str, np.ndarray]:
    """Our arrays of sequences [R, L] padded on the right."""
    ids, real, trained = (np.asarray(x) for x in (ids, real, trained))

    def shifted(x):
        return np.pad(x[:, 1:], ((0, 0), (0, 1)))

    real = real.astype(np.int32)
    return {
        "tokens": ids.astype(np.int32),
        "targets": shifted(ids).astype(np.int32),
        "segment_ids": real,
        "positions": np.arange(ids.shape[1], dtype=np.int32) * real,
        "weights": shifted(trained).astype(np.float32),
    }


def pairs_of(rows: dict, others: dict) -> dict[str, np.ndarray]:
    """[B, 2, T] of two batches [B, L], of which one may be wider."""
    width = max(x["tokens"].shape[1] for x in (rows, others))
    return {
        name: np.stack([np.pad(x[name], ((0, 0), (0, width - x[name].shape[1]))) for x in (rows, others)], axis=1)
        for name in rows
    }


def split(inputs: dict, mask: str) -> dict[str, np.ndarray]:
    """Pairs of a batch whose first half is chosen."""
    rows = rows_of(inputs["input_ids"], inputs["attention_mask"], inputs[mask])
    half = len(rows["tokens"]) // 2
    return pairs_of({n: x[:half] for n, x in rows.items()}, {n: x[half:] for n, x in rows.items()})


def agree(ours, theirs, names, config):
    """Loss and logs to 1e-4, gradients to 1e-3 of the gradient's norm."""
    (loss, metrics, gradient), (their_loss, logged, gradients, _) = ours, theirs
    assert loss == pytest.approx(their_loss, rel=1e-4, abs=1e-5)
    for name in names:
        assert metrics[name] == pytest.approx(logged[name], rel=1e-4, abs=1e-5), name
    if gradient is not None:
        found = theirs_of(config, gradient)
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in gradients.values()))
        assert norm > 1e-3 and gradients.keys() == {name for name, x in found.items() if name in gradients or np.any(x)}
        apart = np.sqrt(sum(np.sum(np.square(found[name] - x)) for name, x in gradients.items()))
        assert apart < 1e-3 * norm


@pytest.mark.parametrize("loss", ["nll", pytest.param("dft", marks=pytest.mark.slow)])
def test_sft(folder, tmp_path, loss):
    trainer = trl.SFTTrainer(
        their_model(folder("policy")),
        trl.SFTConfig(tmp_path, loss_type=loss, **COMMON),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=texts(B, 1), completion=texts(B, 2)),
    )
    theirs = step_of(trainer)
    inputs = theirs[-1]
    batch = rows_of(inputs["input_ids"], inputs["attention_mask"], inputs["labels"] != -100)
    assert 0 < batch["weights"].sum() < batch["segment_ids"].sum() - B
    objective = sft.objective(align_config(sft=dict(loss=loss)))
    ours = measured(objective, *policy(), batch, key=KEY)
    agree(ours, theirs, ["entropy", "mean_token_accuracy"], policy()[0])


REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "entropy"]


@pytest.mark.parametrize(
    "losses", [["dpo"], pytest.param(["robust", "hinge", "ipo", "apo_zero", "apo_down"], marks=pytest.mark.slow)]
)
def test_dpo(folder, tmp_path, losses):
    trainer = trl.DPOTrainer(
        their_model(folder("policy")),
        their_model(folder("reference")),
        trl.DPOConfig(tmp_path, beta=0.3, **COMMON),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=texts(B, 1), chosen=texts(B, 2), rejected=texts(B, 3)),
    )
    theirs = step_of(trainer)
    batch = split(theirs[-1], "completion_mask")
    for name in losses:
        smoothing = 0.1 if name == "robust" else 0.0
        trainer.loss_types, trainer.label_smoothing = ["sigmoid" if name == "dpo" else name], smoothing
        theirs = step_of(trainer, theirs[-1])
        objective = preference.objective(align_config(preference=dict(loss=name, beta=0.3, label_smoothing=smoothing)))
        ours = measured(objective, *policy(), batch, reference(), KEY)
        agree(ours, theirs, [*REWARDS, "rewards/accuracies"], policy()[0])
        assert abs(ours[1]["rewards/margins"]) > 0.01


@pytest.mark.slow
def test_kto(folder, tmp_path):
    weights = dict(desirable_weight=2.0, undesirable_weight=0.5)
    trainer = trl.KTOTrainer(
        their_model(folder("policy")),
        their_model(folder("reference")),
        trl.KTOConfig(tmp_path, beta=0.3, **weights, **COMMON),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=texts(B, 1), completion=texts(B, 4), label=[True, False, True, True]),
    )
    theirs = step_of(trainer)
    inputs = theirs[-1]
    own, other = (
        rows_of(*(inputs[at + name] for name in ("input_ids", "attention_mask", "completion_mask"))) for at in ("", "KL_")
    )
    batch = pairs_of(own, other) | {"desirable": inputs["label"].numpy().astype(np.float32)}
    objective = preference.objective(align_config(preference=dict(loss="kto", beta=0.3, **weights)))
    ours = measured(objective, *policy(), batch, reference(), KEY)
    agree(ours, theirs, [*REWARDS, "kl"], policy()[0])
    assert ours[1]["kl"] > 0.01


@pytest.mark.slow
def test_reward(folder, tmp_path):
    trainer = trl.RewardTrainer(
        their_model(folder("reward"), transformers.AutoModelForSequenceClassification),
        trl.RewardConfig(tmp_path, center_rewards_coefficient=0.1, **COMMON),
        processing_class=tokenizer(),
        train_dataset=dataset(chosen=texts(B, 2), rejected=texts(B, 3), margin=[0.0, 0.3, 0.5, 1.0]),
    )
    theirs = step_of(trainer)
    inputs = theirs[-1]
    batch = split({**inputs, "all": inputs["attention_mask"]}, "all") | {"margin": inputs["margin"].numpy().astype(np.float32)}
    config, params = policy("reward")
    ours = measured(reward.objective(align_config(reward=dict(centering=0.1))), config, params, batch, key=KEY)
    agree(ours, theirs, ["accuracy", "margin", "mean_reward", "min_reward", "max_reward"], config)


@pytest.mark.slow
def test_grpo(folder, tmp_path):
    """Given completions: rewards and advantages, and the loss and its gradient against other sampling probabilities."""
    G, longest = 2, 7
    answers = [[int(word[1:]) for word in text.split()] + [END] * (i % 2) for i, text in enumerate(texts(B, 5))]
    prompts = [prompt for prompt in texts(B // G, 1) for _ in range(G)]

    def given(prompts, trainer):
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": answers, "logprobs": [[0.0] * len(answer) for answer in answers]}

    def odd(completion_ids, **columns):
        return [float(sum(ids) % 5) for ids in completion_ids]

    model = their_model(folder("policy"))
    model.config._name_or_path = folder("reference")  # which is where the trainer looks for it
    trainer = trl.GRPOTrainer(
        model,
        odd,
        trl.GRPOConfig(
            tmp_path,
            beta=0.04,
            num_generations=G,
            max_completion_length=longest,
            epsilon_high=0.28,
            shuffle_dataset=False,
            **COMMON,
        ),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=prompts[::G]),
        rollout_func=given,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}

    total = np.array(odd(answers))
    told = reward_metrics(total, {"odd": total}, G)
    for name in ("reward", "frac_reward_zero_std", "rewards/odd/mean", "rewards/odd/std"):
        assert told[name] == pytest.approx(logged[name], rel=1e-4), name
    drawn = inputs["completion_mask"].numpy() > 0
    found = [inputs["completion_ids"][row].numpy()[drawn[row]].tolist() for row in range(B)]  # in an order of its own
    compared = np.asarray(advantages.grpo(total.reshape(-1, G))).reshape(-1)[[answers.index(ids) for ids in found]]
    np.testing.assert_allclose(compared, inputs["advantages"], rtol=1e-4, atol=1e-6)

    ids, real, trained = (np.zeros((B, 16), np.int32) for _ in range(3))
    for row, answer in enumerate(found):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row] > 0].tolist()
        n = len(prompt) + len(answer)
        ids[row, :n], real[row, :n], trained[row, len(prompt) : n] = prompt + answer, 1, 1
    batch = rows_of(ids, real, trained) | {"advantages": compared}
    batch["tokens_share"] = np.full(B, batch["weights"].sum() / B, np.float32)
    config, params = policy()
    settings = align_config(batch_size=B)
    settings.update(rl_settings(G, longest))
    prepare = jax.jit(rl.prepared(skeleton(config)[0], settings))
    batch = {name: np.asarray(x) for name, x in prepare(params, reference(), batch).items()}
    places = batch["weights"] > 0
    np.testing.assert_allclose(batch["ref_logps"][places], inputs["ref_per_token_logps"].numpy()[drawn], rtol=1e-4, atol=1e-5)
    # As though the tokens had been drawn by a policy between the two.
    batch["old_logps"] = (0.6 * batch["old_logps"] + 0.4 * batch["ref_logps"]).astype(np.float32)
    old = np.zeros(drawn.shape, np.float32)
    old[drawn] = batch["old_logps"][places]
    inputs["old_per_token_logps"] = torch.from_numpy(old)

    for kind in ("dapo", "grpo", "bnpo", "dr_grpo", "gspo"):
        trainer.loss_type = "grpo" if kind == "gspo" else kind
        trainer.importance_sampling_level = "sequence" if kind == "gspo" else "token"
        settings.rl.loss = kind
        theirs = step_of(trainer, inputs)
        ours = measured(rl.objective(settings), config, params, batch, key=KEY, gradient=kind in ("dapo", "gspo"))
        clipped = ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"] if kind != "gspo" else []
        agree(ours, theirs, ["kl", "entropy", *clipped], config)
        assert kind == "gspo" or 0 < ours[1]["clip_ratio/region_mean"] < 1


def rl_settings(group_size: int, max_new_tokens: int) -> dict:
    return {
        "rl": dict(
            algorithm="grpo",
            loss="dapo",
            group_size=group_size,
            scale="group",
            beta=0.04,
            kl="k3",
            clip_low=0.2,
            clip_high=0.28,
            epochs=1,
            minibatches=1,
            require_equal=False,
            correction="none",
            correction_cap=2.0,
        ),
        "rollout": dict(max_new_tokens=max_new_tokens, temperature=1.0, max_turns=1),
    }
