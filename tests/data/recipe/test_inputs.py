"""Files of a run, grouped into units."""

import pytest

from data.recipe.inputs import units


@pytest.mark.parametrize(
    "files, megabytes, expected",
    [
        (3, 0.1, [3]),  # a unit of a MiB is not filled
        (40, 0.5, [2] * 20),  # at least a MiB each
        (64, 1, [2] * 32),  # 32 units
        (100, 4, [2] * 50),  # at most 8 MiB each
        (3, 100, [1] * 3),  # a file is not split
    ],
)
def test_small_inputs_have_many_units_too(files, megabytes, expected, tmp_path):
    paths = [tmp_path / f"{number:03}.txt" for number in range(files)]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(int(megabytes * (1 << 20)))
    found = units((str(path), path.name) for path in paths)
    assert [len(unit.files) for unit in found] == expected
    assert [id for unit in found for _, id in unit.files] == [path.name for path in paths]
    assert len({unit.name for unit in found}) == len(found)
