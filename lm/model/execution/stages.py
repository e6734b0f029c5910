"""What the model gives to the pipeline of lm/parallel/pipeline.py: rows, and layers that are sent."""

from typing import Any

from lm.kernels.visible import Visible
from lm.model.cache import layers_of
from lm.model.steps import Step
from lm.parallel.arrays import PyTree
from lm.parallel.context import slots
from lm.parallel.mesh import over_stages
from lm.parallel.pipeline import layer_of


def unstacked(params: PyTree, repeats: int) -> list[PyTree]:
    """Return the parameters of each layer of a stack, on all stages of the mesh."""
    if over_stages(repeats):
        return [layer_of(params, n) for n in range(repeats)]
    return layers_of(params, repeats)


def rows_of(steps: dict[bool, Step]) -> tuple[Any, ...]:
    """Return the arrays [B, …] of the Steps of a call without a cache."""
    visible = next(iter(steps.values())).visible
    assert visible is not None
    return {local: step.rotary for local, step in steps.items()}, visible.segments_BT, visible.branches


def of_rows(rows: tuple[Any, ...]) -> dict[bool, Step]:
    """Return the Steps of some rows; the inverse of `rows_of`."""
    rotary, segments_BT, branches = rows
    visible = Visible(segments_BT, segments_BT, slots(segments_BT.shape[1]), branches)
    return {local: Step(angles, visible, False, 0, segments_BT > 0) for local, angles in rotary.items()}
