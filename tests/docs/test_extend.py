"""The examples of docs/extend.md are complete: its files, changes, programs and commands work in their order."""

import shutil

import pytest

from tests.docs import doc_commands
from tests.docs.shorter_commands import shorter
from tests.lm.evals import tiny_models
from tests.verbs.conftest import shared  # noqa: F401 (fixtures)


@pytest.mark.slow
def test_examples(tmp_path):
    (tmp_path / "model").mkdir()
    with doc_commands.opened(tmp_path / "clone") as box:
        shutil.copytree(tiny_models.published(tmp_path / "model")[0], box.folder / "RUN")
        for block in doc_commands.blocks("docs/extend.md"):
            try:
                if block.kind == "commands":
                    for command in doc_commands.commands(block):
                        box.run(shorter(command))
                else:
                    box.block(block)
            except AssertionError as error:
                raise AssertionError(f"{block}: {error}") from error
