"""Fixtures of the tests of several folders here."""

import jax
import pytest

from tests.lm.reports.browser import CHROMIUM, Browser


@pytest.fixture(scope="module")
def browser():
    """A browser for the tests of a module. They are skipped where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def quick():
    """For modules whose programs take longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
