"""The benchmark of writing has both sides write the same targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from scripts.bench import write
from scripts.bench.config import BenchConfig
from scripts.support.caches import made_up_identity, made_up_rows


@pytest.mark.parametrize(("top_k", "tail_weight"), [(64, None), (1, 1 / 32)])
def test_both_files_hold_the_same_ids_and_logprobs(tmp_path: Path, top_k: int, tail_weight: float | None) -> None:
    identity = made_up_identity(32, 24, 300, top_k=top_k, tail_weight=tail_weight)
    targets = write.Targets(identity=identity, rows=[made_up_rows(identity, first, 16) for first in (0, 16)])
    assert targets.num_tokens == 32 * 24
    ours = pa.ipc.open_file(write.write_ours(targets, tmp_path)).read_all()
    parquet = pyarrow.parquet.read_table(write.write_parquet(targets, tmp_path))
    assert parquet.num_rows == targets.num_tokens
    found = {name: ours[name].combine_chunks().flatten().to_numpy() for name in ("ids", "logprobs", "head_size")}
    np.testing.assert_array_equal(found["ids"], parquet["ids"].combine_chunks().flatten().to_numpy())
    logprobs = parquet["logprobs"].combine_chunks()
    np.testing.assert_allclose(found["logprobs"], logprobs.flatten().to_numpy(), rtol=2**-7, atol=2**-20)
    np.testing.assert_array_equal(found["head_size"], np.diff(logprobs.offsets.to_numpy()))


def test_what_is_compared_is_printed_with_its_target() -> None:
    threads = pa.cpu_count(), pa.io_thread_count()
    comparisons = list(write.run(BenchConfig(name="write", size="tiny", rounds=2)))
    assert (pa.cpu_count(), pa.io_thread_count()) == threads
    assert [c.target for c in comparisons] == [20, None, None] * 2
    assert all("not measured here" in c.reference for c in comparisons[::3])
    assert all(value > 0 for c in comparisons for value in [*c.our_values, *c.reference_values])
