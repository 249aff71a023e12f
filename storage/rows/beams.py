"""beams: a row is one prompt with the teacher's n best candidates from beam search, best first."""

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
from storage.rows.samples import FINISH_REASONS
from storage.rows.setting_rules import LONGEST_ROW_TOKENS, number, whole

_LARGEST_LENGTH_PENALTY = 1e6


def schema(vocab_size: int) -> pa.Schema:
    """Return the columns of a beams shard. A row's candidates are flattened; `candidate_lengths` separates them."""
    tokens = columns.required_list(columns.token_type(vocab_size))
    return pa.schema(
        [
            columns.required("row_id", pa.int64()),
            columns.required("prompt_id", pa.int64()),
            columns.required("prompt_ids", tokens),
            columns.required("candidate_lengths", columns.required_list(pa.uint32())),
            columns.required("candidate_ids", tokens),
            columns.required("scores", columns.required_list(pa.float32())),
            columns.required("sum_logprobs", columns.required_list(pa.float32())),
            columns.required("finish_reasons", columns.required_list(pa.string())),
            columns.required("texts", columns.required_list(pa.large_string())),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One beam hypothesis. score = sum_logprob / length^length_penalty; both are in nats, length is in tokens."""

    candidate_ids: NDArray[Any]
    score: float
    sum_logprob: float
    finish_reason: str
    text: str


@dataclass(frozen=True, kw_only=True)
class BeamRow:
    """A prompt and its candidates, best score first; no two have the same ids."""

    row_id: int
    prompt_id: int
    prompt_ids: NDArray[Any]
    candidates: list[Candidate]


def encode(rows: list[BeamRow], row_schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows as a record batch of `row_schema`."""
    per_row = [row.candidates for row in rows]
    flat = [candidate for candidates in per_row for candidate in candidates]
    offsets = columns.offsets_of(np.array([len(candidates) for candidates in per_row]))
    lengths = np.array([len(candidate.candidate_ids) for candidate in flat], dtype=np.int64)
    tokens = row_schema.field("prompt_ids").type.value_type.to_pandas_dtype()
    ids, _ = columns.flatten_ragged([candidate.candidate_ids for candidate in flat], tokens)
    prompts, prompt_offsets = columns.flatten_ragged([row.prompt_ids for row in rows], tokens)
    ragged_columns: dict[str, tuple[Any, NDArray[np.int64]]] = {
        "prompt_ids": (prompts, prompt_offsets),
        "candidate_lengths": (lengths.astype(np.uint32), offsets),
        "candidate_ids": (ids, columns.offsets_of(lengths)[offsets]),
        "scores": (np.array([candidate.score for candidate in flat], dtype=np.float32), offsets),
        "sum_logprobs": (np.array([candidate.sum_logprob for candidate in flat], dtype=np.float32), offsets),
        "finish_reasons": ([candidate.finish_reason for candidate in flat], offsets),
        "texts": ([candidate.text for candidate in flat], offsets),
    }

    def column(field: pa.Field) -> pa.Array:
        if field.name in ragged_columns:
            return columns.to_ragged(*ragged_columns[field.name], field.type)
        return pa.array([getattr(row, field.name) for row in rows], type=field.type)

    return pa.RecordBatch.from_arrays([column(field) for field in row_schema], schema=row_schema)


def decode(batch: pa.RecordBatch) -> list[BeamRow]:
    """Return the rows of a record batch."""
    prompts, prompt_offsets = columns.ragged(batch, "prompt_ids")
    lengths, offsets = columns.ragged(batch, "candidate_lengths")
    ids = np.split(columns.ragged(batch, "candidate_ids")[0], np.cumsum(lengths)[:-1].astype(np.int64))
    scores, sums = columns.ragged(batch, "scores")[0], columns.ragged(batch, "sum_logprobs")[0]
    reasons = batch.column("finish_reasons").flatten().to_pylist()
    texts = batch.column("texts").flatten().to_pylist()
    candidates = [
        Candidate(
            candidate_ids=ids[c],
            score=float(scores[c]),
            sum_logprob=float(sums[c]),
            finish_reason=reasons[c],
            text=texts[c],
        )
        for c in range(len(lengths))
    ]
    return [
        BeamRow(
            row_id=row_id,
            prompt_id=prompt_id,
            prompt_ids=prompts[prompt_offsets[r] : prompt_offsets[r + 1]],
            candidates=candidates[offsets[r] : offsets[r + 1]],
        )
        for r, (row_id, prompt_id) in enumerate(
            zip(columns.plain(batch, "row_id").tolist(), columns.plain(batch, "prompt_id").tolist(), strict=True)
        )
    ]


def check(batch: pa.RecordBatch, vocab_size: int, where: str) -> None:
    """Raise RowError unless every row obeys the format's rules (storage/FORMAT.md, "Rules of a row")."""
    for name in ("prompt_ids", "candidate_ids"):
        if np.any(columns.ragged(batch, name)[0] >= vocab_size):
            raise RowError(where, name, f"an id is outside the vocabulary of {vocab_size}")
    if np.any(np.diff(columns.ragged(batch, "prompt_ids")[1]) == 0):
        raise RowError(where, "prompt_ids", "is empty")
    lengths, offsets = columns.ragged(batch, "candidate_lengths")
    if np.any(np.diff(offsets) == 0) or np.any(lengths == 0):
        raise RowError(where, "candidate_lengths", "a row without candidates, or an empty candidate")
    num_ids = np.diff(columns.ragged(batch, "candidate_ids")[1])
    if not np.array_equal(num_ids, columns.row_sums(lengths, offsets)):
        raise RowError(where, "candidate_ids", "its length is not the sum of candidate_lengths")
    for name in ("scores", "sum_logprobs", "finish_reasons", "texts"):
        if not np.array_equal(columns.ragged_offsets(batch, name), offsets):
            raise RowError(where, name, "has not one entry per candidate")
    for name in ("scores", "sum_logprobs"):
        values = columns.ragged(batch, name)[0]
        if not np.all(np.isfinite(values) & (values <= 0)):
            raise RowError(where, name, "a value is not a finite number ≤ 0")
    descends = np.diff(columns.ragged(batch, "scores")[0]) <= 0
    same_row = np.diff(np.repeat(np.arange(batch.num_rows), np.diff(offsets))) == 0
    if not np.all(descends | ~same_row):
        raise RowError(where, "scores", "candidates are not best first")
    for row in decode(batch):
        if len({candidate.candidate_ids.tobytes() for candidate in row.candidates}) < len(row.candidates):
            raise RowError(where, "candidate_ids", "two candidates of a row are alike")
    if not set(batch.column("finish_reasons").flatten().to_pylist()) <= set(FINISH_REASONS):
        raise RowError(where, "finish_reasons", f"a value is not one of {', '.join(FINISH_REASONS)}")


class Beams(Kind):
    """The kind beams: prompts with their best candidates."""

    name = "beams"
    row_is = "a prompt with the teacher's best candidates from beam search"
    holds = "{} prompts with beam candidates"
    sequences = "beams"
    longest_row_settings = (("data", "longest_prompt_tokens", "beams"), ("config", "beams", "max_new_tokens"))
    setting_rules: ClassVar = {
        "max_new_tokens": whole(1, LONGEST_ROW_TOKENS),
        "length_penalty": number(-_LARGEST_LENGTH_PENALTY, _LARGEST_LENGTH_PENALTY),
    }
    has_prompts = True

    def schema(self, facts: RowFacts) -> pa.Schema:
        """Return the columns, which are the same for all settings."""
        return schema(facts.vocab_size)

    def check(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        """Raise RowError unless every row obeys the rules, which are the same for all settings."""
        check(batch, facts.vocab_size, where)

    def size_limits(self, batch: pa.RecordBatch, facts: RowFacts) -> Iterator[SizeLimit]:
        """Yield the limits of prompts and of candidates, in tokens."""
        prompt_tokens = columns.ragged_lengths(batch, "prompt_ids")
        yield SizeLimit(column="prompt_ids", num_tokens=prompt_tokens, most=facts.longest_prompt_tokens)
        candidate_tokens, most = columns.ragged(batch, "candidate_lengths")[0], facts.settings.get("max_new_tokens")
        yield SizeLimit(column="candidate_lengths", num_tokens=candidate_tokens, most=most)

    def statistics(self, batch: pa.RecordBatch) -> BatchStats:
        """Return the counts of a record batch. A target is a candidate."""
        num_prompt_tokens, num_candidate_tokens, num_candidates = (
            len(columns.ragged(batch, name)[0]) for name in ("prompt_ids", "candidate_ids", "candidate_lengths")
        )
        return BatchStats(num_tokens=num_prompt_tokens + num_candidate_tokens, num_targets=num_candidates)

    def show(self, batch: pa.RecordBatch, to_text: ToText) -> Iterator[str]:
        """Yield a text for each row: the prompt and its candidates with their scores."""
        for row in decode(batch):
            candidates = "\n".join(
                f"  {c.score:8.4f} {c.text!r} ({len(c.candidate_ids)} tokens, {c.finish_reason})"
                for c in row.candidates
            )
            yield f"row {row.row_id}, prompt {row.prompt_id}: {to_text(row.prompt_ids)}\n{candidates}"
