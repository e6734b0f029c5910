"""Traces of chosen steps: which steps they hold, and that their operations can be told apart."""

import jax
import jax.numpy as jnp
import pytest

from lm.errors import UserError
from lm.train.profile import STEP, Profile, traces
from lm.train.step import make_trainer
from lm.train.values import profiled_steps
from tests.lm.examples import packed_batch, tiny_config
from tests.slow import all_but


def steps_of(path) -> list[int]:
    """The numbers of the annotated steps of a trace."""
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events if event.name == STEP]
    return sorted(dict(event.stats)["step_num"] for event in events)


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
    profile = Profile(text, tmp_path, begin, end)
    square = jax.jit(jnp.square)
    for step in range(begin + 1, end + 1):
        if step == profile.first:
            profile.start()
        with profile.step(step):
            square(jnp.float32(step)).block_until_ready()
        if step == profile.last:
            profile.stop()
    profile.stop()
    found = list(tmp_path.rglob("*.xplane.pb"))
    assert [path.parent for path in found] == ([traces(tmp_path) / session] if session else [])
    assert [steps_of(path) for path in found] == ([steps] if session else [])
    assert len(list(tmp_path.rglob("*.trace.json.gz"))) == len(found)


def test_a_run_that_begins_and_ends_in_between_leaves_the_steps_so_far(tmp_path):
    profile = Profile("1-5", tmp_path, 1, 9)
    profile.start()
    with profile.step(2):
        pass
    profile.stop()
    assert [path.parent.name for path in tmp_path.rglob("*.xplane.pb")] == ["steps-2-2"]


@pytest.mark.parametrize("text", ["a", "3-", "-3", "3-2", "0-2", "0", "1-2-3", "1.5", " "])
def test_texts_that_name_no_steps(text):
    with pytest.raises(UserError, match="^profile='" + text):
        profiled_steps(text)


def test_a_range_behind_the_end(tmp_path):
    with pytest.raises(UserError, match="profile=7-8: the run has only 6 steps"):
        Profile("7-8", tmp_path, 0, 6)


def test_operations_carry_the_part_of_the_model():
    config = tiny_config()
    trainer = make_trainer(config)
    batch = jax.tree.map(jnp.asarray, packed_batch(config, seed=0))
    text = jax.jit(trainer.step).lower(jax.eval_shape(trainer.init), batch).as_text(debug_info=True)
    for part in ("embedding", "attention", "feed_forward", "head_loss", "optimizer"):
        assert f"/{part}/" in text or f"({part})/" in text, part
