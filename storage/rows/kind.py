"""The interface of a kind: all that the cache format asks of one sort of rows.

A kind is a subclass of `Kind` in a file of its own and a line in the table of storage/rows/kinds.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from storage.errors import RowError
from storage.rows.columns import Array
from storage.rows.setting_rules import Rule

# Ids of tokens as text in quotes.
ToText = Callable[[Any], str]


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What a cache states about the rows of one kind.

    settings: how they were made, empty when the cache does not say. longest_prompt_tokens: None when it does not say.
    """

    vocab_size: int
    block_size: int
    temperatures: tuple[float, ...]
    settings: Mapping[str, Any]
    longest_prompt_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class BatchStats:
    """What the shard's record adds up over its record batches."""

    num_tokens: int
    num_targets: int
    entropy_sum_nats: float = 0.0
    label_nll_sum_nats: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SizeLimit:
    """Sizes that stand in a column, in tokens, and the largest that the cache's settings allow (None: any)."""

    column: str
    num_tokens: Array
    most: int | None


class Kind(ABC):
    """One kind of rows.

    name: of the directory of its shards, and of its settings in plan.json. row_is: what a row is, for the dataset card.
    holds: what many rows are, for a sentence in which {} is the number that shard records state as `counted`.
    setting_rules: what its settings may be, by name. has_prompts: plan.json states the longest prompt of its rows.
    longest_row_settings: the settings whose sum is the most tokens that a model reads for a row. sequences: what
    messages call these rows when they do not fit into a model's context.
    """

    name: ClassVar[str]
    row_is: ClassVar[str]
    holds: ClassVar[str]
    counted: ClassVar[Literal["num_rows", "num_targets"]] = "num_rows"
    sequences: ClassVar[str]
    longest_row_settings: ClassVar[tuple[tuple[str, ...], ...]]
    setting_rules: ClassVar[Mapping[str, Rule]]
    has_prompts: ClassVar[bool] = False

    @abstractmethod
    def schema(self, facts: RowFacts) -> pa.Schema:
        """Columns of a shard."""

    @abstractmethod
    def check(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        """Raise RowError unless every row obeys the format's rules (storage/FORMAT.md, "Rules of a row")."""

    @abstractmethod
    def size_limits(self, batch: pa.RecordBatch, facts: RowFacts) -> Iterator[SizeLimit]:
        """What the cache's settings say about the sizes of rows that obey the rules."""

    @abstractmethod
    def statistics(self, batch: pa.RecordBatch) -> BatchStats:
        """Counts and sums over rows that obey the rules."""

    @abstractmethod
    def show(self, batch: pa.RecordBatch, to_text: ToText) -> Iterator[str]:
        """Rows as text for people."""

    def describe_settings(self, settings: Mapping[str, Any], temperatures: Sequence[float]) -> list[str]:
        """Lines about the settings in the summary of a cache."""
        return []

    def check_sizes(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        """Raise RowError for a row that is larger than the cache's settings allow.

        Readers reserve memory by these limits. Padding a batch to its widest row costs rows times width, so one
        wide row among many narrow ones would cost far more memory than bytes of the file.
        """
        for limit in self.size_limits(batch, facts):
            if limit.most is not None and np.any(limit.num_tokens > limit.most):
                problem = f"has {limit.num_tokens.max()} tokens where the cache's settings allow {limit.most}"
                raise RowError(where, limit.column, problem)
