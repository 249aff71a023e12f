"""A kind of rows that no package knows, to prove that a line in a table is all that a kind needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa

from storage.errors import RowError
from storage.rows import columns
from storage.rows.kind import BatchStats, Kind, RowFacts, SizeLimit, ToText
from storage.rows.setting_rules import whole


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
