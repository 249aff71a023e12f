"""The dataset card names exactly the shards of the cache."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from types import SimpleNamespace

import pytest

from storage.records.dataset_card import dataset_card
from storage.records.identity import ShardKey, ShardRecord

RECORD = ShardRecord(
    path="", first_row_id=0, num_rows=1, num_tokens=1, num_targets=1, entropy_sum_nats=0.0, label_nll_sum_nats=0.0,
    shard_bytes=1, sha256="0" * 64,
)  # fmt: skip
COPIES = ("{} (1).arrow", "Copy of {}.arrow", "{}.arrow.bak", "._{}.arrow", "1{}.arrow")


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_card_says_that_some_targets_are_not_wanted(make: SimpleNamespace, is_wanted: bool) -> None:
    shard = dataclasses.replace(RECORD, path="soft_targets/train-00000-of-00001.arrow")
    card = dataset_card(make.identity(config={"soft_targets": {"top_k": 3, "is_wanted": is_wanted}}), (shard,))
    assert ("distribution at every position that `is_wanted` marks |" in card) == is_wanted


@pytest.mark.parametrize(("num_shards", "num_patterns"), [(1, 1), (12, 1), (100_000, 1), (100_001, 2)])
def test_the_card_matches_the_shards_and_no_copy_of_one(
    make: SimpleNamespace, num_shards: int, num_patterns: int
) -> None:
    keys = [ShardKey(kind="samples", split="train", index=i, num_shards=num_shards) for i in range(num_shards)]
    shards = tuple(dataclasses.replace(RECORD, path=key.path) for key in keys)
    card = dataset_card(make.identity({"samples": {"train": [1] * num_shards}}), shards)
    [data_files] = json.loads(card.split("---")[1])["configs"][0]["data_files"]
    patterns = [data_files["path"]] if num_patterns == 1 else data_files["path"]
    assert len(patterns) == num_patterns
    assert len(card) < 3000

    def is_named(path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    for key in (keys[0], keys[num_shards // 2], keys[-1]):
        assert is_named(key.path)
        assert not is_named(dataclasses.replace(key, num_shards=num_shards + 1).path)
        stem = key.path.removeprefix("samples/").removesuffix(".arrow")
        assert not any(is_named("samples/" + copy.format(stem)) for copy in COPIES)
