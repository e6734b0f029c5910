"""One training step and one validation step, as pure functions of (state, batch), for any objective.

A batch is a dict of arrays whose first axis is B. The pretraining objective takes arrays [B, T]: tokens, targets, segment_ids,
positions (int32) and weights (float32). A model with encoders also takes images and audio, as in `Media` (lm/model/media.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from lm.config import ModelConfig
from lm.errors import UserError
from lm.kernels.head import CrossEntropy
from lm.kernels.ops import cross_entropy
from lm.model.inputs import inputs_of
from lm.model.linear import trainable
from lm.model.transformer import Hidden, LayerPath, Transformer, build, skeleton
from lm.parallel.arrays import PyTree
from lm.parallel.context import shift
from lm.parallel.memory import has_host_memory, on_host
from lm.parallel.mesh import shardings, spec_of
from lm.runs import own_code
from lm.train import guard, rates
from lm.train.chips import dtype_here
from lm.train.optimizers.chain import optimizer as chain
from lm.train.update import TrainState, Update, schedule

Batch: TypeAlias = dict[str, jax.Array]
# Room for the tiles of a product in a TPU core's fast memory, KiB. The default of 16 MiB leaves the matrix unit waiting: by the
# compiler's estimate the products of Llama 3 8B take 1.0–2.6 × their FLOPs at peak with it, and 1.01–1.08 × with this.
FAST_MEMORY = {"TPU v5 lite": 65_536, "TPU v5": 49_152, "TPU v6 lite": 98_304}


class Sums(NamedTuple):
    """Auxiliary sums of a loss: metrics as (sum, weight), logged as sum / weight; expert loads [..., E] (tokens per expert) by
    the path of the layer."""

    metrics: dict[str, tuple[jax.Array, jax.Array]]
    loads: dict[LayerPath, jax.Array]


class Loss(Protocol):
    """The signature of the loss of an Objective."""

    def __call__(
        self, model: Transformer, batch: Batch, frozen: PyTree, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, Sums]:
        """Return (sum over the batch, Sums), float32.

        frozen: whatever does not learn, such as a reference or a teacher. train: False in evaluation. key: a new random key in
        each step; None in evaluation.
        """


class Objective(NamedTuple):
    """The function that a run minimises.

    weight(batch) -> the divisor of the loss, always for the whole batch, also if it is sliced. is_nll: in evaluation the loss
    is Σ w·nll of the next tokens, and nothing else.
    """

    loss: Loss
    weight: Callable[[Batch], jax.Array]
    is_nll: bool = False


class Init(Protocol):
    """The signature of Trainer.init."""

    def __call__(self, params: nnx.State | None = None) -> TrainState:
        """Return the first state, with random parameters if none are given."""


class Step(Protocol):
    """The signature of Trainer.step."""

    def __call__(self, state: TrainState, batch: Batch, frozen: PyTree = None) -> tuple[TrainState, dict[str, jax.Array]]:
        """Return (the next state, metrics)."""


class Evaluate(Protocol):
    """The signature of Trainer.evaluate."""

    def __call__(self, params: nnx.State, batch: Batch, frozen: PyTree = None) -> dict[str, Any]:
        """Return {"objective", "weight", "metrics"}, sums over the batch."""


class Trainer(NamedTuple):
    """The pure functions of one run, and what they were made of.

    graph: of the model, for nnx.merge(graph, params). learns: the parameters that are trained. offload: the optimizer's moments
    are in host memory between steps (config.optimizer.offload).
    """

    init: Init
    step: Step
    evaluate: Evaluate
    objective: Objective
    model: ModelConfig
    graph: nnx.GraphDef
    learns: nnx.filterlib.Filter
    offload: bool


def make_trainer(config: ml_collections.ConfigDict, objective: Objective | None = None, updates: int = 1) -> Trainer:
    """Build the step for a resolved config (see configs/train/default.py) under the current mesh.

    Args: objective: None: pretraining. updates: parameter updates in each of config.steps.
    """
    model_config = model_config_of(config)
    graph, abstract = skeleton(model_config)
    o = config.optimizer
    peak = rates.learning_rate(config)[0] if o.learning_rate is None else o.learning_rate
    objective = objective or own_objective(config) or pretraining(z_loss=o.z_loss, mtp_loss=o.mtp_loss)
    learns = trainable(model_config)
    learned = nnx.filter_state(abstract, learns)
    if not jax.tree.leaves(learned):
        raise UserError(f"model.frozen={model_config.frozen!r} leaves nothing to train: name fewer parameters")
    transform = chain(learned, model_config, o)
    learning_rate = schedule(
        o.schedule, peak=peak, steps=config.steps * updates, warmup=o.warmup * updates, final=o.final, decay=o.decay
    )

    update = Update(
        transform, learning_rate, config, model_config, learns, o.offload and has_host_memory(), guard.settings(config)
    )

    def init(params: nnx.State | None = None) -> TrainState:
        return update.first_state(build(model_config, config.seed) if params is None else params)

    def step(state: TrainState, batch: Batch, frozen: PyTree = None) -> tuple[TrainState, dict[str, jax.Array]]:
        weight = objective.weight(batch)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        params, rest = nnx.split_state(state.params, learns, ...)

        def loss(params: nnx.State, part: Batch) -> tuple[jax.Array, Sums]:
            model = nnx.merge(graph, nnx.merge_state(params, rest))
            total, sums = objective.loss(model, part, frozen, train=True, key=key)
            return jax.tree.map(lambda x: x / weight, (total, sums))

        grad = jax.value_and_grad(loss, has_aux=True)
        (total, sums), grads = grad(params, batch) if config.accumulate <= 1 else added(grad, params, batch, config.accumulate)
        with jax.named_scope("optimizer"):
            state, ok, numbers = update.applied(state, grads, total, sums.loads)
        metrics = {"loss": total} | {name: ratio(*pair) for name, pair in sums.metrics.items()} | numbers
        metrics |= {"weight": weight * ok, "tokens": jnp.sum(batch["weights"] > 0) * ok}
        if sums.loads:
            metrics["expert_load"] = jnp.max(jnp.stack([busiest(load) for load in sums.loads.values()]))
        return state, metrics

    def evaluate(params: nnx.State, batch: Batch, frozen: PyTree = None) -> dict[str, Any]:
        """Return sums over the batch, so that several batches can be added."""
        total, sums = objective.loss(nnx.merge(graph, params), batch, frozen, train=False)
        return {"objective": total, "weight": objective.weight(batch), "metrics": sums.metrics}

    return Trainer(init, step, evaluate, objective, model_config, graph, learns, update.offload)


def compiler_options(device: jax.Device) -> dict[str, str | bool] | None:
    """Return the compiler options of a step on devices of this kind, for jax.jit(…, compiler_options=…)."""
    room = FAST_MEMORY.get(device.device_kind)
    return {"xla_tpu_scoped_vmem_limit_kib": str(room)} if room else None


def ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Return total / weight, or total if the weight is 0."""
    return total / jnp.where(weight == 0, 1.0, weight)


def model_config_of(config: ml_collections.ConfigDict) -> ModelConfig:
    """Return the ModelConfig of a training config; the compute dtype is a top-level key."""
    return ModelConfig(**config.model, dtype=dtype_here()[0] if config.dtype == "auto" else config.dtype)


def pretraining(*, z_loss: float, mtp_loss: float) -> Objective:
    """Return the next-token objective; every token has its batch weight."""

    def loss(
        model: Transformer, batch: Batch, frozen: PyTree, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, Sums]:
        if not train:
            objective, nll = token_loss(model, batch, z_loss=0.0)
            return objective, Sums({"loss": (nll, jnp.sum(batch["weights"]))}, {})
        return training_loss(model, batch, z_loss=z_loss, mtp_loss=mtp_loss)

    return Objective(loss, lambda batch: jnp.sum(batch["weights"]), is_nll=True)


def token_loss(model: Transformer, batch: Batch, *, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """Return (Σ w·(nll + z), Σ w·nll) of the next tokens, without multi-token prediction and router losses."""
    x_BTD = model.hidden(inputs_of(batch)).x_BTD
    objective, nll = head_loss(model, x_BTD, batch["targets"], batch["weights"], z_loss)
    return objective, nll


def own_objective(config: ml_collections.ConfigDict) -> Objective | None:
    """Return the objective of a user's file that config.objective names; None if it names none."""
    if not (value := config.get("objective")):
        return None
    objective = own_code.called("objective", value)
    if not isinstance(objective, Objective):
        raise UserError(f"objective={value} returned {type(objective).__name__}, not an Objective (lm/train/step.py)")
    return objective


def training_loss(
    model: Transformer, batch: Batch, *, z_loss: float, mtp_loss: float, noise_BTD: jax.Array | None = None, **head: Any
) -> tuple[jax.Array, Sums]:
    """Return the training objective as a sum over tokens, and sums to report.

    The objective is Σ w·(nll + z) of the next token, plus mtp_loss / depth · Σ over the depth of the same for tokens further
    ahead (DeepSeek-V3, 2024, eq. 25), plus the router losses, summed over tokens and layers (lm/model/moe.py).
    noise_BTD is added to the embeddings. head: extra arguments of the next token's cross-entropy.
    """
    main = model.hidden(inputs_of(batch, noise_BTD))
    places = batch["segment_ids"], batch["positions"]
    ahead = model.ahead(main.x_BTD, batch["targets"], *places) if model.config.mtp_depth else []
    objective, *sums = head_loss(model, main.x_BTD, batch["targets"], batch["weights"], z_loss, **head)
    metrics = {name: (x, jnp.sum(batch["weights"])) for name, x in zip(("loss", "entropy", "mean_token_accuracy"), sums)}
    nll_ahead, weight_ahead = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    for k, hidden in enumerate(ahead, start=1):
        # Targets beyond the end of the document have weight 0.
        weights = shift(batch["weights"], k) * (shift(batch["segment_ids"], k) == batch["segment_ids"])
        one, nll_k = head_loss(model, hidden.x_BTD, shift(batch["targets"], k), weights, z_loss)
        objective = objective + mtp_loss / len(ahead) * one
        nll_ahead, weight_ahead = nll_ahead + nll_k, weight_ahead + jnp.sum(weights)
    if ahead:
        metrics["loss_ahead"] = (nll_ahead, weight_ahead)
    if main.router is None:
        return objective, Sums(metrics, {})
    router, loads = router_loss(model, [main, *ahead])
    return objective + router, Sums(metrics, loads)


def router_loss(model: Transformer, passes: list[Hidden]) -> tuple[jax.Array, dict[LayerPath, jax.Array]]:
    """Return the routers' weighted balance and z losses, summed over tokens and layers, and the expert loads by path."""
    moe, total = model.config.moe, jnp.zeros((), jnp.float32)
    loads: dict[LayerPath, jax.Array] = {}
    for hidden in passes:
        if hidden.router is not None:
            total = total + moe.balance_loss * hidden.router.balance + moe.router_z_loss * hidden.router.z
            loads |= hidden.router.loads
    return total, loads


@jax.named_scope("head_loss")
def head_loss(
    model: Transformer, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, z_loss: float, **options: Any
) -> tuple[jax.Array, ...]:
    """Return (Σ w·(nll + z), Σ w·nll) of hidden states, float32. options: other fields of CrossEntropy."""
    config = model.config
    objective = CrossEntropy(z_loss, config.logit_softcap, **options)
    return cross_entropy(model.to_head(x_BTD), model.head_VD, targets_BT, weights_BT, objective, dtype=config.dtype)


def busiest(load: jax.Array) -> jax.Array:
    """Return the largest entry of a load [..., E], relative to the mean of its layer."""
    return jnp.max(load / jnp.maximum(1e-9, jnp.mean(load, axis=-1, keepdims=True)))


def added(grad: Callable[[nnx.State, Batch], PyTree], params: nnx.State, batch: Batch, parts: int) -> PyTree:
    """Return the sum of grad(params, part) over equal slices of the batch.

    A token counts the same in any slice, so `grad` must divide by the weight of the whole batch.
    """

    def body(carry: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, carry, grad(params, part)), None

    parted = slices(batch, parts)
    shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parted))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec), shapes)
    return lax.scan(body, zeros, parted)[0]


def slices(batch: Batch, parts: int) -> Batch:
    """Split the batch into equal parts: each array gets a new first axis.

    Part i holds rows i, i + parts, …, so every part takes the same share of each device's rows and no row moves.
    """

    def split(x: jax.Array) -> jax.Array:
        where = spec_of(x)
        where = where and PartitionSpec(where[0], None, *where[1:])
        x = lax.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:]), out_sharding=where)
        return jnp.moveaxis(x, 1, 0)

    return jax.tree.map(split, batch)


def abstract_state(trainer: Trainer, mesh: Mesh | AbstractMesh) -> TrainState:
    """Return shapes, dtypes and shardings of the state, to restore a checkpoint or to compile a program."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(trainer.init),
        state_shardings(trainer, mesh),
    )


def state_shardings(trainer: Trainer, mesh: Mesh | AbstractMesh) -> TrainState:
    """Return the NamedSharding of every array of the state: moments are sharded like parameters, counters replicated."""
    abstract = jax.eval_shape(trainer.init)
    found = shardings(abstract, mesh)
    if not trainer.offload:
        return found
    return found._replace(optimizer=jax.tree.map(on_host, found.optimizer, abstract.optimizer))
