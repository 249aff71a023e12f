"""Batches of right rows in which one rule of their kind is broken at a time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from storage.errors import RowError
from storage.records.identity import CacheIdentity
from storage.shards.shard import check_batch, check_rows

Edit = Callable[[list[Any]], object]
# What to change in which columns, the column that is blamed, and a part of what is said about it.
BrokenRow = tuple[dict[str, Edit], str, str]


def assert_refused(
    batch: pa.RecordBatch, kind: str, identity: CacheIdentity, forge: SimpleNamespace, broken: BrokenRow
) -> None:
    """The batch is right, and once it is edited it is refused by the name of the column, between right rows too."""
    edits, column, problem = broken
    right = batch
    check_batch(right, kind, identity, "here")
    for name, edit in edits.items():
        batch = forge.column(batch, name, edit)
    with pytest.raises(RowError, match=problem) as caught:
        check_batch(batch, kind, identity, "here")
    assert (caught.value.column, caught.value.where) == (column, "here")
    if column == "row_id":
        return
    check_rows(pa.concat_batches([right, right]), kind, identity, "here")
    with pytest.raises(RowError, match=problem) as caught:
        check_rows(pa.concat_batches([right, batch, right]), kind, identity, "here")
    assert (caught.value.column, caught.value.where) == (column, "here")
