"""The interface of a kind: everything that the cache format needs to know about one kind of rows.

To add a kind, write a subclass of `Kind` in a new file and add it to the table in storage/rows/kinds.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from storage.errors import RowError
from storage.rows.columns import Array
from storage.rows.setting_rules import Rule

# Returns token ids as a text in quotes.
ToText = Callable[[Any], str]


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What a cache states about the rows of one kind.

    settings: the settings that the rows were made with; empty when the cache does not state them.
    longest_prompt_tokens: None when the cache does not state it.
    """

    vocab_size: int
    block_size: int
    temperatures: tuple[float, ...]
    settings: Mapping[str, Any]
    longest_prompt_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class BatchStats:
    """Counts and sums of one record batch. A shard's record holds their totals over its record batches."""

    num_tokens: int
    num_targets: int
    entropy_sum_nats: float = 0.0
    label_nll_sum_nats: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SizeLimit:
    """Sizes of the lists in `column`, in tokens, and the largest that the cache's settings allow (None: any)."""

    column: str
    num_tokens: Array
    most: int | None


class Kind(ABC):
    """One kind of rows.

    name: name of the directory of its shards, and of its settings in plan.json.
    row_is: what a row is, in words.
    holds: words for the rows of a cache, for a sentence in its report. {} stands for the total of `counted`.
    counted: the field of shard records whose total stands in `holds`.
    sequences: what messages call these rows when they do not fit into a model's context.
    longest_row_settings: paths of settings in plan.json. Their sum is the most tokens that a model reads for a row.
    setting_rules: name of each setting → rule for its value.
    has_prompts: whether rows have prompts. If so, plan.json may state the length of the longest.
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
        """Return the columns of a shard."""

    @abstractmethod
    def check(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        """Raise RowError unless every row obeys the format's rules (storage/FORMAT.md, "Rules of a row").

        Rules are about single rows: the batch may hold rows of several record batches, whose row ids have gaps.
        """

    @abstractmethod
    def size_limits(self, batch: pa.RecordBatch, facts: RowFacts) -> Iterator[SizeLimit]:
        """Yield the limits that the cache's settings set to the sizes of rows. The rows obey the rules of `check`."""

    @abstractmethod
    def statistics(self, batch: pa.RecordBatch) -> BatchStats:
        """Return counts and sums over the rows. The rows obey the rules of `check`."""

    @abstractmethod
    def show(self, batch: pa.RecordBatch, to_text: ToText) -> Iterator[str]:
        """Yield the rows as text for people."""

    def format_version(self, settings: Mapping[str, Any]) -> int:
        """Return the lowest format version that has all columns of rows with these settings, which may be unchecked."""
        return 1

    def describe_row(self, settings: Mapping[str, Any]) -> str:
        """Return what a row with these settings is, for the dataset card."""
        return self.row_is

    def describe_settings(self, settings: Mapping[str, Any], temperatures: Sequence[float]) -> list[str]:
        """Return lines about the settings, for the summary of a cache."""
        return []

    def check_sizes(self, batch: pa.RecordBatch, facts: RowFacts, where: str) -> None:
        """Raise RowError for a row that is larger than the cache's settings allow.

        Readers reserve memory by these limits. A batch that is padded to its widest row takes rows × width entries, so
        one wide row among many narrow ones would take far more memory than it has bytes in the file.
        """
        for limit in self.size_limits(batch, facts):
            largest = limit.num_tokens.max(initial=0)
            if limit.most is not None and largest > limit.most:
                problem = f"has {largest} tokens where the cache's settings allow {limit.most}"
                raise RowError(where, limit.column, problem)
