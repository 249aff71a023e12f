from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from storage.rows import columns

ARRAYS = {
    "bools": pa.array([True, False, False, True, True, True, False, True, False, True, True], pa.bool_()),
    "float16": pa.array(np.array([0.0, -1.5, -np.inf, np.nan, 65504.0], np.float16)),
    "float32": pa.array([0.25, -3.0, 1e30], pa.float32()),
    "uint16": pa.array([0, 65535, 7], pa.uint16()),
    "uint32": pa.array([0, 4294967295], pa.uint32()),
    "int64": pa.array([-(1 << 63), 0, (1 << 63) - 1], pa.int64()),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_elements_of_every_slice_are_those_that_arrow_lists(name: str) -> None:
    array = ARRAYS[name]
    for start in range(len(array) + 1):
        for stop in range(start, len(array) + 1):
            part = array.slice(start, stop - start)
            found = columns.elements(part)
            assert found.dtype == array.type.to_pandas_dtype()
            np.testing.assert_array_equal(found, np.array(part.to_pylist(), found.dtype))


def test_elements_are_no_copy_and_only_to_be_read() -> None:
    array = ARRAYS["float16"]
    found = columns.elements(array)
    assert found.__array_interface__["data"] == (array.buffers()[1].address, True)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0


@pytest.mark.parametrize("name", ARRAYS)
def test_nothing_has_no_elements(name: str) -> None:
    for empty in (pa.array([], ARRAYS[name].type), pa.nulls(0, ARRAYS[name].type)):
        assert columns.elements(empty).shape == (0,)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_runs_decode_to_each_value_up_to_its_end(dtype: Any) -> None:
    values, ends = np.array([3, 0, 255], dtype), np.array([1, 4, 6])
    decoded = pc.run_end_decode(columns.runs(values, ends))
    assert columns.elements(decoded).tolist() == [3, 0, 0, 0, 255, 255]
    assert columns.elements(decoded).dtype == dtype


def test_reading_does_not_import_pandas(small_cache: Path, run_python: Any) -> None:
    code = (
        "import sys, storage\n"
        "from storage.rows.kinds import KINDS\n"
        "cache = storage.open_cache(sys.argv[1])\n"
        "for kind in KINDS:\n"
        "    stream = storage.RowStream(cache, kind, 'train', batch_rows=4, seed=0)\n"
        "    print(next(stream.batches()).rows.num_rows)\n"
        "print('pandas' in sys.modules)"
    )
    done = run_python(code, small_cache)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["4", "4", "4", "False"], "")


@pytest.mark.parametrize("length", [0, 1, 3, 7])
def test_stretches_are_the_slices_from_each_start(length: int) -> None:
    values = np.arange(7, dtype=np.uint16)
    for starts in (np.arange(7 - length + 1), np.array([0, 0]), np.empty(0, dtype=np.int64)):
        expected = np.array([values[start : start + length] for start in starts], values.dtype)
        found = columns.stretches(values, starts, length)
        np.testing.assert_array_equal(found, expected.reshape(len(starts), length))
        assert found.dtype == values.dtype
