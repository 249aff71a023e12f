"""The kind soft_targets: a row is one block with the teacher's sparse next-token targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.rows import columns, soft_targets
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS, LEAST_SCALAR_MANTISSA_BITS
from storage.rows.kind import BatchStats, Kind, RowFacts, SizeLimit, ToText
from storage.rows.setting_rules import either, number, of, some_of, whole
from storage.rows.soft_target_rules import check

_ALTERNATIVES = 4
_TOKENS_SHOWN = 24


class SoftTargets(Kind):
    """The kind soft_targets: blocks of tokens with a sparse next-token distribution at every position."""

    name = "soft_targets"
    row_is = "a block of tokens with the teacher's sparse next-token distribution at every position"
    holds = "its next-token distribution at {} positions"
    counted = "num_targets"
    sequences = "blocks"
    longest_row_settings = (("block_size",),)
    setting_rules: ClassVar = {
        "top_k": whole(0, (1 << 63) - 1),
        "tail_weight": either(number(0, 1), None),
        "mantissa_bits": whole(1, FLOAT16_MANTISSA_BITS),
        "scalar_mantissa_bits": whole(LEAST_SCALAR_MANTISSA_BITS, FLOAT16_MANTISSA_BITS),
        "is_wanted": of(bool, "true or false"),
        "unknown_columns": some_of(tuple(soft_targets.MAY_BE_UNKNOWN)),
    }

    def schema(self, facts: RowFacts) -> pa.Schema:
        """Return the columns. Each temperature other than 1 adds one, and so does the setting is_wanted."""
        return soft_targets.schema(
            facts.vocab_size,
            facts.block_size,
            facts.temperatures,
            is_wanted=soft_targets.has_is_wanted(facts.settings),
            unknown_columns=soft_targets.unknown_columns(facts.settings),
        )

    def check(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        """Raise RowError unless every row obeys the rules. The bound on the mass depends on the mantissa bits."""
        check(batch, facts.vocab_size, where, soft_targets.mantissa_bits(facts.settings))

    def size_limits(self, batch: pa.RecordBatch, facts: RowFacts) -> Iterator[SizeLimit]:
        """Yield the limits of heads and tails, in entries; none when the cache does not state top_k and tail_weight.

        A tail has at most ⌊1/τ⌋ + 1 draws, 0 without τ = tail_weight. At most 1/τ probabilities reach τ, so a head has
        at most max(top_k, ⌊1/τ⌋ + 1) entries.
        """
        if not {"top_k", "tail_weight"} <= facts.settings.keys():
            return
        tail_weight = facts.settings["tail_weight"]
        most_drawn = 0 if tail_weight is None else math.floor(min(1 / tail_weight, 1 << 32)) + 1
        most_kept = max(facts.settings["top_k"], most_drawn)
        yield SizeLimit(column="head_size", num_tokens=columns.fixed(batch, "head_size"), most=most_kept)
        yield SizeLimit(column="tail_size", num_tokens=columns.fixed(batch, "tail_size"), most=most_drawn)

    def statistics(self, batch: pa.RecordBatch) -> BatchStats:
        """Return the number of valid targets, and over them the sums of the teacher's entropy and next-token loss.

        A sum is 0 when its column is not known.
        """
        rows = soft_targets.decode(batch)
        valid = rows.is_valid_target
        return BatchStats(
            num_tokens=rows.input_ids.size,
            num_targets=int(valid.sum()),
            entropy_sum_nats=_sum(rows.entropy, valid),
            label_nll_sum_nats=-_sum(rows.label_logprob, valid),
        )

    def format_version(self, settings: Mapping[str, Any]) -> int:
        """Return 3 for rows that lack a column, else 2 for rows with the column is_wanted, else 1."""
        if soft_targets.unknown_columns(settings):
            return 3
        return 2 if soft_targets.has_is_wanted(settings) else 1

    def describe_row(self, settings: Mapping[str, Any]) -> str:
        """Return what a row is; where the column is_wanted exists, some positions have no distribution."""
        return f"{self.row_is} that `is_wanted` marks" if soft_targets.has_is_wanted(settings) else self.row_is

    def describe_settings(self, settings: Mapping[str, Any], temperatures: Sequence[float]) -> list[str]:
        """Return a line that says what head and tail hold, and the temperatures at which losses can use them.

        Add a line when only some targets are wanted.
        """
        first, served = f"{temperatures[0]:g}", ", ".join(f"{t:g}" for t in sorted({1.0, *temperatures}))
        weight = settings.get("tail_weight")
        tail = "the mass of the rest" if weight is None else f"draws of weight {weight:g} at temperature {first}"
        lines = [f"targets    the top {settings.get('top_k')} and {tail}; losses at temperature {served}"]
        if soft_targets.has_is_wanted(settings):
            lines.append("           only wanted targets, as the column is_wanted says")
        if unknown := soft_targets.unknown_columns(settings):
            lines.append(f"           not known: {', '.join(soft_targets.MAY_BE_UNKNOWN[name] for name in unknown)}")
        return lines

    def show(self, batch: pa.RecordBatch, to_text: ToText) -> Iterator[str]:
        """Yield each block's text, then its first valid targets with the teacher's top alternatives."""
        rows = soft_targets.decode(batch)
        is_head = soft_targets.head_mask(rows)
        num_head_before: NDArray[np.int64] = np.cumsum(is_head) - is_head
        sizes = rows.head_size + rows.tail_size
        first_entry = (np.cumsum(sizes.reshape(-1)) - sizes.reshape(-1)).reshape(sizes.shape)
        valid = rows.is_valid_target
        for r, row_id in enumerate(rows.row_id):
            yield f"row {row_id}: {to_text(rows.input_ids[r])}"
            for t in islice(np.flatnonzero(valid[r]), _TOKENS_SHOWN):
                start, head = first_entry[r, t], rows.head_size[r, t]
                ids = rows.ids[start : start + head]
                first_logprob = num_head_before[start] if head else 0
                logprobs = rows.logprobs[first_logprob : first_logprob + head].astype(np.float32)
                best = np.argsort(-logprobs, kind="stable")[:_ALTERNATIVES]
                alternatives = "  ".join(f"{to_text(ids[b])} {np.exp(logprobs[b]):.3f}" for b in best)
                label, tail = (_probability(x, r, t) for x in (rows.label_logprob, rows.tail_logprob))
                entropy = "not known" if rows.entropy is None else f"{rows.entropy[r, t]:.2f} nats"
                yield (
                    f"  {t:>4} {to_text(rows.input_ids[r, t]):>14} → {to_text(rows.input_ids[r, t + 1]):<14}"
                    f" {label} | {alternatives} | tail {tail} in {rows.tail_size[r, t]} draws, entropy {entropy}"
                )


def _sum(values_RT: NDArray[Any] | None, valid_RT: NDArray[np.bool_]) -> float:
    return 0.0 if values_RT is None else float(values_RT[valid_RT].astype(np.float64).sum())


def _probability(logprob_RT: NDArray[Any] | None, r: int, t: Any) -> str:
    return "?" if logprob_RT is None else f"{float(np.exp(np.float32(logprob_RT[r, t]))):.3f}"
