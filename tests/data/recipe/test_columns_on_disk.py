"""Columns on disk are those that were written, and cost no import of pandas."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from data.recipe import tables

COLUMNS = {
    "text": ["one", None, "", "drei – 三 😀", "x" * 1000, None, "a", "b", None],
    "share": np.array([0.0, np.nan, -0.0, np.inf, 1e-300, 2, 3, 4, 5]),
    "number": np.array([-1, 2**62, 3, 4, 5, 6, 7, 8, 9]),
    "small": np.arange(9, dtype=np.uint8)[::-1],
    "flag": np.arange(9) % 3 == 0,
}
SAVES = """
import sys
from pathlib import Path
import numpy as np
from data.recipe import tables
with tables.writing(Path(sys.argv[1])) as write:
    write({"text": ["a"], "flag": np.ones(1, bool)})
next(tables.read(Path(sys.argv[1])))
sys.exit("pandas" in sys.modules)
"""


@pytest.mark.parametrize("rows", [0, 1, 8, 9])
def test_arrays_are_those_of_arrow(rows):
    for values in COLUMNS.values():
        some = values[:rows]
        theirs = pa.array(some) if isinstance(some, np.ndarray) else pa.array(some, pa.string())
        mine = tables.array(some)
        mine.validate(full=True)
        assert mine.type == theirs.type and mine.null_count == theirs.null_count
        assert repr(mine.to_pylist()) == repr(theirs.to_pylist())


def test_batches_are_read_as_they_were_written(tmp_path):
    parts = [slice(0, 4), slice(4, 4), slice(4, 9)]
    with tables.writing(tmp_path / "file") as write:
        for part in parts:
            write({name: values[part] for name, values in COLUMNS.items()})
    batches = list(tables.read(tmp_path / "file"))
    assert [len(batch["text"]) for batch in batches if batch["text"]] == [4, 5]
    for name, values in COLUMNS.items():
        if isinstance(values, np.ndarray):
            found = np.concatenate([batch[name] for batch in batches])
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values)
        else:
            assert sum((batch[name] for batch in batches), []) == values


def test_pandas_is_not_imported(tmp_path):
    assert subprocess.run([sys.executable, "-c", SAVES, tmp_path / "file"]).returncode == 0
