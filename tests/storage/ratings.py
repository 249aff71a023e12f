"""A kind of rows that no package knows, to prove that a line in a table is all that a kind needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from storage.errors import RowError
from storage.records.commits import write_commit, write_plan
from storage.records.identity import CacheIdentity, ShardKey
from storage.records.manifest import Manifest, write_manifest
from storage.rows import columns
from storage.rows.kind import BatchStats, Kind, RowFacts, SizeLimit, ToText
from storage.rows.setting_rules import whole
from storage.shards.shard import write_shard

PROMPTS = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]
RATINGS = [0, 5, 3, 1, 2]


class Ratings(Kind):
    """Prompts with the teacher's rating of each, from 0 to 5."""

    name = "ratings"
    row_is = "a prompt with a rating"
    holds = "{} rated prompts"
    sequences = "ratings"
    longest_row_settings = (("data", "longest_prompt_tokens", "ratings"),)
    setting_rules: ClassVar = {"most_stars": whole(1, 5)}
    has_prompts = True

    def schema(self, facts: RowFacts) -> pa.Schema:
        return pa.schema(
            [
                columns.required("row_id", pa.int64()),
                columns.required("prompt_ids", columns.required_list(columns.token_type(facts.vocab_size))),
                columns.required("rating", pa.int32()),
            ]
        )

    def check(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        if np.any(columns.plain(batch, "rating") > facts.settings["most_stars"]):
            raise RowError(where, "rating", "has too many stars")

    def size_limits(self, batch: pa.RecordBatch, facts: RowFacts) -> Iterator[SizeLimit]:
        lengths = columns.ragged_lengths(batch, "prompt_ids")
        yield SizeLimit(column="prompt_ids", num_tokens=lengths, most=facts.longest_prompt_tokens)

    def statistics(self, batch: pa.RecordBatch) -> BatchStats:
        return BatchStats(num_tokens=len(columns.ragged(batch, "prompt_ids")[0]), num_targets=batch.num_rows)

    def show(self, batch: pa.RecordBatch, to_text: ToText) -> Iterator[str]:
        for row in batch.to_pylist():
            yield f"row {row['row_id']}: {len(row['prompt_ids'])} tokens {'*' * row['rating']}"


def write_rated_cache(directory: Path, identity: CacheIdentity, ratings: list[int] = RATINGS) -> Path:
    """A finished cache of five rows, as the identity plans one shard of them."""
    write_plan(directory, identity)
    rows = {"row_id": list(range(len(PROMPTS))), "prompt_ids": PROMPTS, "rating": ratings}
    batches = pa.table(rows, schema=identity.schema("ratings")).to_batches(max_chunksize=identity.record_batch_rows)
    key = ShardKey(kind="ratings", split="train", index=0, num_shards=1)
    record = write_commit(directory, write_shard(directory, identity, key, 0, batches))
    write_manifest(directory, Manifest(identity=identity, shards=(record,), files=()))
    return directory
