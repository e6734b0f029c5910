"""Traces of chosen steps: which steps they hold, and that their operations can be told apart."""

import contextlib

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from lm.errors import UserError
from lm.train.events.profile import Profile, traces
from lm.train.loop import STEP
from lm.train.step import make_trainer
from lm.train.values import profiled_steps
from tests.lm.examples import packed_batch, tiny_config
from tests.slow import all_but


def steps_of(path) -> list[int]:
    """The numbers of the annotated steps of a trace."""
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events if event.name == STEP]
    return sorted(dict(event.stats)["step_num"] for event in events)


class Running:
    """What Profile uses of a run that is at `begin`, and whose steps square a number."""

    def __init__(self, steps: str, workdir, begin: int, end: int):
        self.config, self.workdir = ml_collections.ConfigDict({"profile": steps, "steps": end}), workdir
        self.begin = self.step = begin
        self.pause = contextlib.nullcontext

    def until(self, end: int) -> None:
        profile, square = Profile(), jax.jit(jnp.square)
        with contextlib.ExitStack() as self.at_end:
            profile.start(self)
            for step in range(self.begin + 1, end + 1):
                profile.before(self, step)
                with jax.profiler.StepTraceAnnotation(STEP, step_num=step):
                    square(jnp.float32(step)).block_until_ready()
                self.step = step
                profile.after(self, step)


RUNS = [
    ("3-4", 0, 6, "steps-3-4", [3, 4]),
    ("3", 0, 6, "steps-3-3", [3]),
    ("3-4", 3, 6, "steps-4-4", [4]),  # of a run that resumes in between
    ("3-9", 0, 4, "steps-3-4", [3, 4]),
    ("3-4", 4, 6, None, []),  # was traced before
    ("", 0, 6, None, []),
]


@pytest.mark.parametrize(("text", "begin", "end", "session", "steps"), all_but([RUNS[0], *RUNS[4:]], RUNS))
def test_a_trace_holds_exactly_the_steps_that_were_asked_for(text, begin, end, session, steps, tmp_path):
    Running(text, tmp_path, begin, end).until(end)
    found = list(tmp_path.rglob("*.xplane.pb"))
    assert [path.parent for path in found] == ([traces(tmp_path) / session] if session else [])
    assert [steps_of(path) for path in found] == ([steps] if session else [])
    assert len(list(tmp_path.rglob("*.trace.json.gz"))) == len(found)


def test_a_run_that_begins_and_ends_in_between_leaves_the_steps_so_far(tmp_path):
    Running("1-5", tmp_path, 1, 9).until(2)
    assert [path.parent.name for path in tmp_path.rglob("*.xplane.pb")] == ["steps-2-2"]


@pytest.mark.parametrize("text", ["a", "3-", "-3", "3-2", "0-2", "0", "1-2-3", "1.5", " "])
def test_texts_that_name_no_steps(text):
    with pytest.raises(UserError, match="^profile='" + text):
        profiled_steps(text)


def test_a_range_behind_the_end(tmp_path):
    with pytest.raises(UserError, match="profile=7-8: the run has only 6 steps"):
        Running("7-8", tmp_path, 0, 6).until(6)


def test_operations_carry_the_part_of_the_model():
    config = tiny_config()
    trainer = make_trainer(config)
    batch = jax.tree.map(jnp.asarray, packed_batch(config, seed=0))
    text = jax.jit(trainer.step).lower(jax.eval_shape(trainer.init), batch).as_text(debug_info=True)
    for part in ("embedding", "attention", "feed_forward", "head_loss", "optimizer"):
        assert f"/{part}/" in text or f"({part})/" in text, part
