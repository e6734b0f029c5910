"""The demo's rows by the best recipe found, without the promise to export (docs/recipe.md): more learnt from equal tokens."""

from configs.train import demo


def get_config():
    return recipe(demo.get_config())


def recipe(config):
    """Return a config of any sizes, which begins with the keys of configs/train/default.py, with this recipe."""
    config.model.value_embeddings = 1  # in each layer
    return config
