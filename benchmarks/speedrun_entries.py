"""Entries of the speedrun that come with it: each name here is one of `python -m benchmarks.speedrun --entry=NAME`."""

from benchmarks import recipe
from configs.train import speedrun as without_export


def adamw(config):
    """Return the config with the former default recipe."""
    config.steps = 2400
    return recipe.adamw(config)


def default(config):
    """Return the config with the recipe of configs/train/default.py."""
    config.steps = 550
    return recipe.default(config)


def speedrun(config):
    """Return the config with the recipe of configs/train/speedrun.py."""
    config.steps = 400
    return recipe.default(without_export.recipe(config))
