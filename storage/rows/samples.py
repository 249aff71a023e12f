"""samples: a row is one text that the teacher drew for a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import RowError
from storage.rows import columns
from storage.rows.kind import BatchStats, Kind, RowFacts, SizeLimit, ToText
from storage.rows.setting_rules import LONGEST_ROW_TOKENS, number, share, whole

FINISH_REASONS = ("stop", "length")
_LARGEST_TEMPERATURE = 1e308


def schema(vocab_size: int) -> pa.Schema:
    """Return the columns of a samples shard."""
    tokens = columns.required_list(columns.token_type(vocab_size))
    return pa.schema(
        [
            columns.required("row_id", pa.int64()),
            columns.required("prompt_id", pa.int64()),
            columns.required("sample_index", pa.int32()),
            columns.required("prompt_ids", tokens),
            columns.required("completion_ids", tokens),
            columns.required("completion_logprobs", columns.required_list(pa.float16())),
            columns.required("text", pa.large_string()),
            columns.required("finish_reason", pa.string()),
            columns.required("seed", pa.uint64()),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One drawn text. completion_ids [n]; completion_logprobs [n] in nats, at temperature 1."""

    row_id: int
    prompt_id: int
    sample_index: int
    prompt_ids: NDArray[Any]
    completion_ids: NDArray[Any]
    completion_logprobs: NDArray[Any]
    text: str
    finish_reason: str
    seed: int


def encode(rows: list[SampleRow], row_schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows as a record batch of `row_schema`."""

    def column(field: pa.Field) -> pa.Array:
        values = [getattr(row, field.name) for row in rows]
        if not pa.types.is_large_list(field.type):
            return pa.array(values, type=field.type)
        flat, offsets = columns.flatten_ragged(values, field.type.value_type.to_pandas_dtype())
        return columns.to_ragged(flat, offsets, field.type)

    return pa.RecordBatch.from_arrays([column(field) for field in row_schema], schema=row_schema)


def decode(batch: pa.RecordBatch) -> list[SampleRow]:
    """Return the rows of a record batch."""
    lists = {
        name: np.split(values, offsets[1:-1])
        for name in ("prompt_ids", "completion_ids", "completion_logprobs")
        for values, offsets in [columns.ragged(batch, name)]
    }
    scalars = {name: batch.column(name).to_pylist() for name in batch.schema.names if name not in lists}
    named = lists | scalars
    return [SampleRow(**{name: values[i] for name, values in named.items()}) for i in range(batch.num_rows)]


def check(batch: pa.RecordBatch, vocab_size: int, where: str) -> None:
    """Raise RowError unless every row obeys the format's rules (storage/FORMAT.md, "Rules of a row")."""
    for name in ("prompt_ids", "completion_ids"):
        values, offsets = columns.ragged(batch, name)
        if np.any(values >= vocab_size):
            raise RowError(where, name, f"an id is outside the vocabulary of {vocab_size}")
        if np.any(np.diff(offsets) == 0):
            raise RowError(where, name, "is empty")
    logprobs, logprob_offsets = columns.ragged(batch, "completion_logprobs")
    if not np.array_equal(logprob_offsets, columns.ragged(batch, "completion_ids")[1]):
        raise RowError(where, "completion_logprobs", "its lengths differ from completion_ids")
    if not np.all(np.isfinite(logprobs) & (logprobs <= 0)):
        raise RowError(where, "completion_logprobs", "a value is not a finite number ≤ 0")
    if not set(columns.strings(batch, "finish_reason")) <= set(FINISH_REASONS):
        raise RowError(where, "finish_reason", f"a value is not one of {', '.join(FINISH_REASONS)}")


class Samples(Kind):
    """The kind samples: texts drawn from the teacher."""

    name = "samples"
    row_is = "a text that the teacher drew for a prompt"
    holds = "{} sampled texts"
    sequences = "samples"
    longest_row_settings = (("data", "longest_prompt_tokens", "samples"), ("config", "samples", "max_new_tokens"))
    setting_rules: ClassVar = {
        "max_new_tokens": whole(1, LONGEST_ROW_TOKENS),
        "temperature": number(0, _LARGEST_TEMPERATURE),
        "top_p": share(),
    }
    has_prompts = True

    def schema(self, facts: RowFacts) -> pa.Schema:
        """Return the columns, which are the same for all settings."""
        return schema(facts.vocab_size)

    def check(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        """Raise RowError unless every row obeys the rules, which are the same for all settings."""
        check(batch, facts.vocab_size, where)

    def size_limits(self, batch: pa.RecordBatch, facts: RowFacts) -> Iterator[SizeLimit]:
        """Yield the limits of prompts and of completions, in tokens."""
        for column, most in (
            ("prompt_ids", facts.longest_prompt_tokens),
            ("completion_ids", facts.settings.get("max_new_tokens")),
        ):
            yield SizeLimit(column=column, num_tokens=columns.ragged_lengths(batch, column), most=most)

    def statistics(self, batch: pa.RecordBatch) -> BatchStats:
        """Return the counts of a record batch. A target is a token of a completion."""
        num_prompt_tokens, num_completion_tokens = (
            len(columns.ragged(batch, name)[0]) for name in ("prompt_ids", "completion_ids")
        )
        return BatchStats(num_tokens=num_prompt_tokens + num_completion_tokens, num_targets=num_completion_tokens)

    def show(self, batch: pa.RecordBatch, to_text: ToText) -> Iterator[str]:
        """Yield a text for each row: the prompt and the text that was drawn for it."""
        for row in decode(batch):
            yield (
                f"row {row.row_id}, prompt {row.prompt_id}, sample {row.sample_index}: {to_text(row.prompt_ids)}\n"
                f"  → {row.text!r} ({len(row.completion_ids)} tokens, {row.finish_reason},"
                f" {row.completion_logprobs.astype(np.float32).mean():.2f} nats/token)"
            )
