"""Meshes that fit are built; those that do not are refused by name."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lm.config import ModelConfig
from lm.errors import UserError
from lm.model.transformer import skeleton
from lm.parallel.context import context_ways, sequences_whole, shift, slots
from lm.parallel.mesh import AXES, check_fit, make_mesh, place_rows, shardings, spec

MODEL = ModelConfig(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=64)
MOE = {"mlp_pattern": ("dense", "moe"), "moe": {"num_experts": 8, "expert_dim": 16, "shared_dim": 16}}
LATENT = {"num_kv_heads": 4, "mla": {"kv_rank": 8, "rope_head_dim": 4}}


def model_of(**change):
    return ModelConfig(**{**vars(MODEL), "head_dim": 0, **change})


def sizes_of(mesh):
    return {axis: size for axis, size in mesh.shape.items() if size > 1}


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"data": 8}, {"data": 8}),
        ({"data": -1}, {"data": 8}),
        ({"data": 2, "fsdp": -1, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"data": -1, "fsdp": 8}, {"fsdp": 8}),
        ({"data": 8, "expert": -1}, {"data": 8}),
        ({"data": 4, "expert": 2}, {"data": 4, "expert": 2}),
        ({"fsdp": 2, "expert": -1}, {"fsdp": 2, "expert": 4}),
    ],
)
def test_sizes(asked, given):
    mesh = make_mesh(asked)
    assert sizes_of(mesh) == given
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Explicit}


def test_an_axis_that_is_not_there_may_have_one_device():
    assert make_mesh({"data": 8, "sequence": 1}).axis_names == AXES


def test_a_mesh_of_some_devices():
    assert sizes_of(make_mesh({"data": -1, "tensor": 2}, jax.devices()[:4])) == {"data": 2, "tensor": 2}
    assert make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"data": 3}, "mesh.data=3 .*8"),
        ({"data": 4}, "mesh.data=4 .*8"),
        ({"data": 16}, "mesh.data=16 .*8"),
        ({"data": -1, "fsdp": 3}, "mesh.fsdp=3"),
        ({"data": -1, "fsdp": -1}, "mesh.data=-1, mesh.fsdp=-1"),
        ({"data": 0}, "mesh.data=0"),
        ({"data": -2}, "mesh.data=-2"),
        ({"data": 4, "expert": 3}, "mesh.expert=3 .*8"),
        ({"data": 4, "sequence": 2}, "mesh.sequence=2: no such axis"),
        ({"data": 1, "sequence": -1}, "mesh.sequence=-1: no such axis"),
        ({}, "mesh of 1 .*8"),
    ],
)
def test_sizes_that_do_not_fit(sizes, named):
    with pytest.raises(UserError, match=named):
        make_mesh(sizes)


@dataclass(frozen=True)
class Gpu:
    """What a mesh reads of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"


@dataclass(frozen=True)
class Tpu:
    id: int
    process_index: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5p"


GPUS = [Gpu(8 * node + i, node, node) for i in range(8) for node in range(4)]  # four nodes, in no useful order
TPUS = [Tpu(8 * n + i, 2 * n + i // 4, n, (i % 2, i // 2 % 2, i // 4)) for n in range(2) for i in range(8)]  # two of 2x2x2


def slices_along(mesh, axis) -> list[set[int]]:
    """The slices of the devices at each place of an axis."""
    rows = np.moveaxis(mesh.devices, AXES.index(axis), 0)
    return [{device.slice_index for device in row.flat} for row in rows]


@pytest.mark.parametrize(
    ("devices", "sizes", "slice_of_data"),
    [
        (GPUS, {"data": 4, "fsdp": 8}, [{0}, {1}, {2}, {3}]),
        (GPUS, {"data": -1, "tensor": 4}, [{0}, {0}, {1}, {1}, {2}, {2}, {3}, {3}]),
        (GPUS, {"data": 2, "fsdp": 16, "slices": 2}, [{0, 1}, {2, 3}]),
        (GPUS, {"data": 1, "fsdp": 32, "slices": 1}, [{0, 1, 2, 3}]),
        (TPUS, {"data": 2, "fsdp": 4, "tensor": 2}, [{0}, {1}]),
        (TPUS, {"data": -1, "tensor": 4, "slices": 2}, [{0}, {0}, {1}, {1}]),
    ],
)
def test_only_data_crosses_slices(devices, sizes, slice_of_data):
    mesh = make_mesh(sizes, devices)
    assert slices_along(mesh, "data") == slice_of_data
    assert sorted(device.id for device in mesh.devices.flat) == list(range(len(devices)))


def test_devices_that_report_no_slices_are_split_when_asked():
    mesh = make_mesh({"data": 4, "tensor": 2, "slices": 2})
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    assert make_mesh({"data": 4, "tensor": 2, "slices": None}) == mesh


@pytest.mark.parametrize(
    ("devices", "sizes", "named"),
    [
        (GPUS, {"fsdp": -1}, "4 slices of 8 devices.*--config.mesh.data=4.*--config.mesh.slices=1"),
        (GPUS, {"data": 2, "fsdp": 16}, "must be a multiple of 4"),
        (GPUS, {"data": 3, "fsdp": 8, "slices": 3}, "mesh.data=3, mesh.fsdp=8 needs 24 devices"),
        (GPUS, {"data": -1, "slices": 3}, "mesh.slices=3 must divide the 32 devices"),
        (GPUS, {"data": -1, "slices": 8}, r"mesh.slices=8: .*\[8, 8, 8, 8\]"),
        (GPUS, {"data": -1, "slices": 0}, "mesh.slices=0"),
        (GPUS[:30], {"data": -1}, "all must have the same number"),
        (TPUS, {"fsdp": -1}, "2 slices of 8 devices.*--config.mesh.data=2, and other axes that fill a slice$"),
        (TPUS, {"fsdp": -1, "slices": 1}, "mesh.slices=1"),
        (TPUS[:8], {"data": -1, "slices": 2}, "mesh.slices=2"),
    ],
)
def test_slices_that_do_not_fit(devices, sizes, named):
    with pytest.raises(UserError, match=named):
        make_mesh(sizes, devices)


@pytest.mark.parametrize(
    ("sizes", "change", "batch_size", "accumulate", "named"),
    [
        ({"data": 8}, {}, 12, 1, "batch_size=12 "),
        ({"data": 4, "fsdp": 2}, {}, 12, 1, "batch_size=12 "),
        ({"data": 2, "tensor": 4}, {"num_kv_heads": 4}, 6, 2, "accumulate"),
        ({"data": 8}, {}, 0, 1, "batch_size=0 "),
        ({"data": 8}, {}, 8, 0, "accumulate"),
        ({"fsdp": 8}, {"embed_dim": 36, "num_heads": 2}, 8, 1, "mesh.fsdp=8 .*model.embed_dim=36"),
        ({"data": 2, "tensor": 4}, {}, 8, 1, "mesh.tensor=4 .*model.num_kv_heads=2"),
        ({"tensor": 8}, {}, 8, 1, "mesh.tensor=8 .*model.num_heads=4"),
        ({"data": 4, "tensor": 2}, {"mlp_dim": 63}, 8, 1, "mesh.tensor=2 .*model.mlp_dim=63"),
        ({"data": 4, "tensor": 2}, {"vocab_size": 63}, 8, 1, "mesh.tensor=2 .*model.vocab_size=63"),
        ({"tensor": 8}, LATENT, 8, 1, "mesh.tensor=8 .*model.num_heads=4"),
        ({"data": 4, "expert": 2}, {}, 8, 1, "mesh.expert=2 .*model.mlp_pattern"),
        ({"data": 4, "expert": 2}, MOE, 12, 1, "batch_size=12 .*mesh.expert"),
        ({"data": 4, "stage": 2}, {}, 12, 1, "batch_size=12 .*mesh.stage × mesh.data"),
        ({"data": 2, "stage": 4}, {"num_layers": 6}, 8, 1, "mesh.stage=4 does not divide .*6 .*model.num_layers=6"),
        ({"data": 2, "stage": 4}, {**MOE, "num_layers": 6}, 8, 1, "mesh.stage=4 .* 3 blocks of 2 layers .*model.num_layers=6"),
        ({"data": 4, "stage": 2}, {"pipeline": {"repeats": 2}}, 8, 1, "mesh.stage=2 × model.pipeline.repeats=2 "),
        ({"expert": 8}, {**MOE, "moe": {"num_experts": 12}}, 8, 1, "mesh.expert=8 .*model.moe.num_experts=12"),
        ({"data": 4, "tensor": 2}, {**MOE, "moe": {"num_experts": 8, "expert_dim": 15}}, 8, 1, "model.moe.expert_dim=15"),
        ({"data": 4, "tensor": 2}, {**MOE, "moe": {"num_experts": 8, "shared_dim": 15}}, 8, 1, "model.moe.shared_dim=15"),
        ({"data": 4, "tensor": 2}, {**MOE, "mlp_dim": 63}, 8, 1, "model.mlp_dim=63"),
        (
            {"fsdp": 2, "context": 4},
            {"embed_dim": 36, "head_dim": 8},
            8,
            1,
            "mesh.fsdp × mesh.context = 2 × 4 .*model.embed_dim=36",
        ),
        ({"data": 4, "context": 2}, {}, 4, 1, "mesh.context=2 .*only training"),
    ],
)
def test_models_and_batches_that_do_not_split(sizes, change, batch_size, accumulate, named):
    model = model_of(**change)
    with pytest.raises(UserError, match=named):
        check_fit(make_mesh(sizes), model, batch_size, accumulate)


def test_a_length_that_does_not_split_is_refused_with_the_nearest_that_does():
    with pytest.raises(UserError, match="sequence_length=60 .*2 × mesh.context = 16: set --config.sequence_length=48"):
        check_fit(make_mesh({"context": 8}), MODEL, 8, 1, 60)


def test_each_part_of_a_sequence_has_an_early_and_a_late_chunk():
    assert slots(16, 2).reshape(2, -1).tolist() == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]
    assert slots(7, 1).tolist() == list(range(7))


@pytest.mark.parametrize("k", [0, 1, 5])
def test_later_tokens_of_a_split_sequence_are_those_of_a_whole_one(k):
    x_BT = np.arange(2 * 32, dtype=np.int32).reshape(2, 32)
    whole = np.pad(x_BT[:, k:], ((0, 0), (0, k)))
    np.testing.assert_array_equal(shift(jnp.asarray(x_BT), k), whole)
    with jax.set_mesh(make_mesh({"data": 2, "context": 4})):
        x = jax.device_put(x_BT[:, slots(32)], NamedSharding(jax.sharding.get_mesh(), spec("batch", "length")))
        found = jax.jit(lambda x: shift(x, k))(x)
        np.testing.assert_array_equal(found, whole[:, slots(32)])
        assert jax.typeof(found).sharding.spec == spec("batch", "length")


def test_sampling_takes_the_parameters_where_they_are():
    mesh = make_mesh({"fsdp": 2, "expert": 2, "context": 2})
    with jax.set_mesh(mesh):
        x = jax.device_put(np.arange(8.0), NamedSharding(mesh, spec("embed")))
        with sequences_whole({"x": x}) as params:
            y = params["x"]
            assert sizes_of(jax.sharding.get_mesh()) == {"fsdp": 4, "expert": 2}
            np.testing.assert_array_equal(jax.jit(lambda y: y + 1)(y), np.arange(8.0) + 1)
        ours, theirs = ({s.device: s.data.unsafe_buffer_pointer() for s in z.addressable_shards} for z in (x, y))
        assert ours == theirs
        assert context_ways() == 2


def test_rows_are_placed_on_a_mesh_that_is_not_set():
    mesh = make_mesh({"data": 4, "tensor": 2})
    (x_BT,) = place_rows(np.arange(16).reshape(8, 2), mesh=mesh)
    assert x_BT.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), 2)
    np.testing.assert_array_equal(x_BT, np.arange(16).reshape(8, 2))


def test_what_splits_is_accepted():
    check_fit(make_mesh({"data": 2, "context": 4}), MODEL, 8, 2, 48)
    check_fit(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), MODEL, 8, 2)
    check_fit(make_mesh({"data": 8}), model_of(vocab_size=63), 8, 1)
    check_fit(make_mesh({"data": 2, "tensor": 4}), model_of(**LATENT), 8, 1)
    check_fit(make_mesh({"data": 2, "expert": 2, "tensor": 2}), model_of(**MOE), 8, 2)
    check_fit(make_mesh({"data": 4, "stage": 2}), model_of(num_layers=9, attention_pattern=("local", "global"), window=4), 8, 1)
    # No layer has mlp_dim hidden units.
    check_fit(make_mesh({"data": 4, "tensor": 2}), model_of(**{**MOE, "mlp_pattern": ("moe",), "mlp_dim": 63}), 8, 1)


def test_parameters_lie_as_their_declaration_says():
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})
    layout = dict(nnx.to_flat_state(shardings(skeleton(model_of(**MOE))[1], mesh)))
    P = PartitionSpec
    expected = {
        ("embedding",): P("tensor", "fsdp"),
        ("norm", "scale"): P(None),
        ("attention", "query", "weight"): P(None, "fsdp", "tensor", None),
        ("attention", "key", "weight"): P(None, "fsdp", "tensor", None),
        ("attention", "output", "weight"): P(None, "tensor", None, "fsdp"),
        ("feed_forward", "down", "weight"): P(None, "tensor", "fsdp"),
        ("feed_forward", "router"): P(None, "fsdp", None),
        ("feed_forward", "up"): P(None, "expert", "fsdp", "tensor"),
        ("feed_forward", "down"): P(None, "expert", "tensor", "fsdp"),
        ("feed_forward", "shared", "up", "weight"): P(None, "fsdp", "tensor"),
    }
    for path, partition in expected.items():
        found = {v.get_value().spec for full, v in layout.items() if full in (path, ("stacks", *full[1:3], *path))}
        assert found == {partition}, path


def test_activations_have_a_partition_only_under_a_mesh():
    assert spec("batch", "length", "vocab") is None
    with jax.set_mesh(make_mesh({"data": 8})):
        assert spec("batch", "length", "vocab") == PartitionSpec(("stage", "data", "fsdp", "expert"), None, "tensor")
