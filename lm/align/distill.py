"""Distillation: train a student on the next-token distributions of a teacher, not only on the written tokens.

The texts are given (Hinton et al. 2015), or they are the student's own answers (on-policy: Agarwal et al. 2024, "On-Policy
Distillation of Language Models", with λ = 1). The objective is the same for both. The teacher is frozen and sharded like the
student. A teacher with another tokenizer has its own objective, in cross/objective.py.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.align.cross.objective import objective as cross_objective
from lm.align.cross.spans import Aligner
from lm.align.cross.vocabulary import NOTHING_SHARED, difference, shared_tokens
from lm.align.data import RunData, Setup, from_examples, from_tasks, is_split
from lm.convert.source import open_source
from lm.errors import UserError, after
from lm.infer.load import load_model
from lm.kernels.divergence import Distillation, divergence
from lm.model.inputs import inputs_of
from lm.parallel import hosts
from lm.parallel.mesh import check_fit, reshard
from lm.train.step import Objective, Sums, Trainer, make_trainer, router_loss

MEASURED = 256  # prompts that say how long the teacher's rows must be


def data(setup: Setup) -> RunData:
    """Return conversations, or tasks that the student answers; for a teacher with another tokenizer, with its tokens."""
    config, path = setup.config, setup.config.distill.teacher
    data = from_tasks(setup) if config.distill.kind == "on_policy" else from_examples(setup)
    theirs = load_tokenizer(path)
    if (why := difference(setup.tokenizer, theirs)) is None:
        return data
    if is_split(config):
        raise UserError(
            f"mesh.context={config.mesh.context} splits sequences, and distill.teacher={path} has another tokenizer, which "
            "needs whole ones: set mesh.context=1"
        )
    if hosts.is_first():
        count = len(shared_tokens(setup.tokenizer, theirs).student_M)
        print(
            f"distill.teacher={path}: {why}, so distill.across={config.distill.across} compares them over spans of text; they "
            f"share {count:,} of the student's {setup.tokenizer.vocab_size:,} tokens",
            flush=True,
        )
    if data.train is None:
        texts = [task["prompt_ids"] for task in data.tasks[:MEASURED]]
    else:
        first = data.train.batch(0)
        texts = [row[segments > 0].tolist() for row, segments in zip(first["tokens"], first["segment_ids"])]
    teacher = open_source(path).config
    aligner = Aligner(setup.tokenizer, theirs, texts, teacher.max_positions if teacher.positions == "learned" else None)
    with_spans = (None if batches is None else batches.with_arrays(aligner) for batches in (data.train, data.valid))
    train, valid = with_spans
    return data._replace(train=train, valid=valid, with_spans=aligner)


def trainer(config, tokenizer: Tokenizer, mesh) -> tuple[Trainer, nnx.State]:
    """Return the trainer, and the teacher's parameters."""
    graph, params = open_teacher(config, tokenizer, mesh)
    theirs = load_tokenizer(config.distill.teacher)
    if difference(tokenizer, theirs) is None:
        return make_trainer(config, objective(config, graph)), params
    shared = shared_tokens(tokenizer, theirs) if config.distill.across == "gold" else NOTHING_SHARED
    return make_trainer(config, cross_objective(config, graph, shared)), params


def objective(config, teacher_graph: nnx.GraphDef) -> Objective:
    """Return the objective Σ over tokens of w·(mix·τ²·D(p, q) + (1 − mix)·nll), for teacher p and student q.

    D, τ and mix are divergence, temperature and mix of config.distill; lm/kernels/divergence.py has the equations. The loss
    takes the teacher's parameters, from `open_teacher`, as `frozen`. Batches: tokens, targets, segment_ids, positions, int32
    [B, T], and weights float32 [B, T]. Metrics, each a mean over tokens: loss; kl between teacher and student at τ; nll of the
    targets; entropy of the student; agreement, the share of tokens for which both have the same most likely token.
    The settings must have passed lm.align.settings.check.
    """
    d = config.distill

    def loss(model, batch, frozen, *, train, key=None):
        teacher = nnx.merge(teacher_graph, frozen)
        hidden, seen = model.hidden(inputs_of(batch)), teacher.hidden(inputs_of(batch))
        sums = divergence(
            model.to_head(hidden.x_BTD),
            *_common(model.head_VD, teacher.to_head(seen.x_BTD), teacher.head_VD),
            batch["targets"],
            batch["weights"],
            Distillation(d.divergence, d.beta, d.mix, d.temperature, model.config.logit_softcap, teacher.config.logit_softcap),
            dtype=config.dtype,
        )
        weight = jnp.sum(batch["weights"])
        named = {"loss": sums.objective, "kl": sums.kl, "nll": sums.nll, "entropy": sums.entropy, "agreement": sums.agreement}
        metrics = {name: (total, weight) for name, total in named.items()}
        if not train:
            return sums.objective, Sums(metrics, {})
        router, loads = router_loss(model, [hidden])
        return sums.objective + router, Sums(metrics, loads)

    return Objective(loss, lambda batch: jnp.sum(batch["weights"]))


def _common(head_VD, teacher_BTE, teacher_head_VE):
    """Return (head, the teacher's hidden states, the teacher's head), both heads cut to their common number of rows.

    Models of one tokenizer may pad their embeddings to different sizes. `open_teacher` has checked that no token is lost.
    """
    rows = min(head_VD.shape[0], teacher_head_VE.shape[0])
    heads = []
    for head in (head_VD, teacher_head_VE):
        if head.shape[0] > rows:
            head = reshard(reshard(head, None, "embed")[:rows], "vocab", "embed")
        heads.append(head)
    return heads[0], teacher_BTE, heads[1]


def check_teacher(distill) -> None:
    """Raise UserError if the teacher of config.distill is no language model, or has no tokenizer; read no weights."""
    if open_source(distill.teacher).config.score_head == "reward":
        raise UserError(f"distill.teacher={distill.teacher} is a reward model, which predicts no tokens; name a language model")
    with after(f"distill.teacher={distill.teacher}: "):
        load_tokenizer(distill.teacher)


def open_teacher(config, tokenizer: Tokenizer, mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """Return (graph, parameters) of config.distill.teacher, a workdir or a Hugging Face folder, on the current mesh.

    Parameters keep their stored dtypes; matmuls run in config.dtype. The teacher may be of any family, size, quantisation and
    tokenizer.
    Raises: UserError if it cannot teach this student on this mesh.
    """
    path = config.distill.teacher
    teacher = dataclasses.replace(open_source(path).config, dtype=config.dtype)
    is_same = difference(tokenizer, load_tokenizer(path)) is None
    if is_same and min(teacher.vocab_size, config.model.vocab_size) < tokenizer.vocab_size:
        raise UserError(
            f"distill.teacher={path} has {teacher.vocab_size} rows of vocabulary and the student {config.model.vocab_size}, "
            f"fewer than the {tokenizer.vocab_size} tokens of the tokenizer"
        )
    if is_same and teacher.positions == "learned" and config.sequence_length > teacher.max_positions:
        raise UserError(
            f"sequence_length={config.sequence_length} is more than the {teacher.max_positions} positions of "
            f"distill.teacher={path}"
        )
    with after(f"distill.teacher={path}: "):
        check_fit(mesh, teacher, config.batch_size, config.accumulate, config.sequence_length)
    return nnx.split(load_model(path, config.dtype, mesh))
