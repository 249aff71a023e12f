"""What a manifest says of the sources of a merged cache, checked when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import RecordError
from storage.records.manifest import read_manifest
from storage.sharing.merging import merge
from tests.storage.sharing.merges import data_of


def change_source(index: int, **changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["data"]["sources"][index].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["data"].update(sources=None),
        lambda content: content["data"].update(sources={}),
        lambda content: content["data"].update(sources=[]),
        lambda content: content["data"]["sources"].pop(),
        lambda content: content["data"]["sources"].__setitem__(0, "a"),
        lambda content: content["data"]["sources"][0].pop("fingerprint"),
        lambda content: content["data"]["sources"][0].pop("planned_shards"),
        lambda content: content["data"]["sources"].append(content["data"]["sources"][0]),
        change_source(0, source=1),
        change_source(0, config=[]),
        change_source(0, software="x"),
        change_source(0, fingerprint=data_of("b")["fingerprint"]),
        change_source(0, planned_shards={"soft_targets": {"train": -1}}),
        change_source(0, planned_shards={"soft_targets": {"train": "2"}}),
        change_source(0, planned_shards={"soft_targets": {"train": 10**30}}),
        change_source(0, planned_shards={"logits": {}}),
        change_source(0, planned_shards={}),
    ],
)
def test_malformed_sources_are_refused(
    two: list[Path], forge: SimpleNamespace, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    out = merge(two, tmp_path / "out").path
    forge.identity(out, change)
    with pytest.raises(RecordError, match=r"sources|planned_shards"):
        read_manifest(out)


def test_sources_whose_shards_are_counted_wrongly_are_refused(
    two: list[Path], forge: SimpleNamespace, tmp_path: Path
) -> None:
    out = merge(two, tmp_path / "out").path

    def move_a_shard(content: dict[str, Any]) -> None:
        one, other = (source["planned_shards"]["soft_targets"] for source in content["data"]["sources"])
        one["train"], other["train"] = one["train"] - 1, other["train"] + 1

    forge.identity(out, move_a_shard)
    with pytest.raises(RecordError, match="overlap or do not follow"):
        read_manifest(out)


def test_shards_with_the_same_rows_are_refused(two: list[Path], forge: SimpleNamespace, tmp_path: Path) -> None:
    out = merge(two, tmp_path / "out").path
    first, twin = (s for s in read_manifest(out).shards_of("soft_targets", "train") if s.first_row_id == 0)
    forge.shard_record(out, twin.path, sha256=first.sha256)
    with pytest.raises(RecordError, match="holds the rows of another shard"):
        read_manifest(out)
