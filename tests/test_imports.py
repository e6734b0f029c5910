"""The order of the rooms: the contracts of pyproject.toml hold."""

import importlinter.cli


def test_imports_point_downwards_and_in_no_circle(capsys):
    code = importlinter.cli.lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert code == 0, capsys.readouterr().out
