"""The length of an alignment run and its batches: from the data, from the record of the run, or as given."""

import sys

import jax
import numpy as np
import pytest

from configs.align import dpo, grpo, sft
from data.chat.example_batches import ExampleBatches
from lm.align import length
from lm.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1}, jax.devices()[:1])


@pytest.mark.parametrize(
    "config, accumulate, rows, batch, slices",
    [
        (sft, 1, 1, 1, 1),  # 5 short chats: a row
        (sft, 1, 16, 1, 1),
        (sft, 1, 100, 6, 1),
        (sft, 1, 10_000, 32, 1),
        (sft, 8, 10_000, 32, 8),  # slices of 4 rows
        (sft, 8, 3, 1, 1),
        (sft, 8, 100, 4, 1),  # as many rows as a slice has
        (sft, 8, 160, 8, 2),
        (dpo, 4, 10_000, 16, 4),
    ],
)
def test_an_epoch_has_some_steps_and_a_slice_never_more_rows(config, accumulate, rows, batch, slices, mesh):
    config = config.get_config()
    config.accumulate = accumulate
    length.choose_batch(config, rows, mesh)
    assert (config.batch_size, config.accumulate) == (batch, slices)
    assert batch <= rows and (batch == 1 or rows // batch >= length.PASS_STEPS)


def test_a_batch_fills_the_devices():
    config = sft.get_config()
    length.choose_batch(config, 200, make_mesh({"data": 8}))
    assert config.batch_size == 8 == length.held_out_batch(config, 1000, make_mesh({"data": 8}))


def test_a_batch_that_is_given_stays(mesh, capsys):
    config = sft.get_config()
    config.batch_size, config.steps = 32, 200
    length.choose_batch(config, 5, mesh)
    length.warn_of_length(config, 5, config.batch_size)
    assert config.batch_size == 32
    repeated, recited = capsys.readouterr().out.splitlines()
    assert "reads 32 rows, and the data have 5" in repeated and "--config.batch_size" in repeated
    assert "read the data 1,280 times" in recited.replace("1.28e+03", "1,280") and "--config.epochs=3" in recited


def test_a_plan_of_three_epochs_warns_of_nothing(mesh, capsys):
    config = sft.get_config()
    length.adopt_length(config, None)
    length.choose_batch(config, 70, mesh)
    config.steps = int(config.epochs * 70 / config.batch_size)
    length.choose_warmup(config)
    length.warn_of_length(config, 70, config.batch_size)
    assert config.epochs == 3 and config.optimizer.warmup == 5 and not capsys.readouterr().out


def test_runs_on_tasks_have_steps():
    config = grpo.get_config()
    length.adopt_length(config, None)
    assert config.steps == length.TASK_STEPS and config.epochs is None and config.batch_size == 64


def test_a_run_goes_on_as_it_was_recorded_and_what_is_given_stays():
    saved = {"steps": 200, "epochs": None, "batch_size": 32, "accumulate": 2, "optimizer": {"warmup": 10}}
    config = sft.get_config()
    length.adopt_length(config, saved)
    assert (config.steps, config.epochs, config.batch_size, config.optimizer.warmup) == (200, None, 32, 10)
    config = sft.get_config()
    config.accumulate = 8
    length.adopt_length(config, saved | {"batch_size": 6})
    assert (config.batch_size, config.accumulate) == (6, 2)
    config = sft.get_config()
    config.accumulate = 4
    length.adopt_length(config, saved | {"batch_size": 8})  # 4 divides 8 too
    assert (config.batch_size, config.accumulate) == (8, 2)
    config = sft.get_config()
    config.epochs, config.batch_size = 5.0, 4
    length.adopt_length(config, saved)
    assert (config.steps, config.epochs, config.batch_size) == (None, 5.0, 4)


@pytest.mark.parametrize(
    "batch, ways, accumulate", [(2, 1, 1), (4, 1, 1), (8, 1, 2), (8, 8, 1), (12, 1, 3), (32, 2, 8), (64, 1, 8)]
)
def test_a_batch_on_the_command_line_has_slices_that_divide_it(batch, ways, accumulate, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["align.py", f"--config.batch_size={batch}"])
    config = sft.get_config()
    config.batch_size, config.accumulate = batch, 8
    length.adopt_length(config, None, ways)
    assert config.accumulate == accumulate


def test_few_held_out_conversations_are_one_a_row_with_the_same_tokens():
    ends, segments = np.array([6, 10]), np.array([1, 1, 1, 2, 2, 2, 1, 1, 2, 2])
    trained = np.array([0, 1, 1] * 2 + [0, 1] * 2, bool)  # what begins a conversation is never trained
    columns = {"tokens": np.arange(10), "trained": trained, "ends": ends, "segments": segments}
    rows, longest = length.units(columns)
    assert rows["ends"].tolist() == [3, 6, 8, 10] and longest == 3

    def targets(columns, batch_size):
        split = ExampleBatches(columns, kind="conversation", lengths=[8], batch_size=batch_size, shuffle=False)
        batches = [split.batch(n) for n in range(split.num_batches)]
        return sorted(
            (int(position), int(token), int(target))
            for batch in batches
            for position, token, target, weight in zip(
                *(batch[name].ravel() for name in ("positions", "tokens", "targets", "weights")), strict=True
            )
            if weight
        )

    assert targets(rows, 1) == targets(columns, 2)
    many = {**columns, "ends": np.arange(1, 11).repeat(4)}
    assert length.units(many)[0] is many
