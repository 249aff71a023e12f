"""The interface by which a run makes the rows of one kind.

To add a producer, write a subclass of `Producer` in a new file and add it to the table in pipeline/producers/table.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.config import PrecomputeConfig
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.teacher.model import Teacher
from storage.records.identity import SPLITS


class Producer(ABC):
    """Make the rows of one kind.

    kind: its name in --kinds and in the cache. most_probe_rows: maximum number of rows that --plan makes for its
    estimate. tokens_per_row: maximum number of tokens that the teacher reads for a row. longest_prompt_tokens: tokens
    of the longest prompt, 0 when rows have no prompts. settings_of_text: settings of the kind in plan.json that the
    text decides.
    """

    kind: ClassVar[str]
    most_probe_rows: ClassVar[int]
    tokens_per_row: int
    longest_prompt_tokens: int = 0
    settings_of_text: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    @abstractmethod
    def context_needed(cls, config: PrecomputeConfig, num_beginning: int) -> tuple[str, int]:
        """Return the flags that decide how long rows are, and the tokens that the teacher must be able to read.

        num_beginning: tokens that every segment and prompt begins with.
        """

    @classmethod
    @abstractmethod
    def from_text(cls, teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> Producer:
        """Return the producer of a run. Raises NoPromptsError when it needs prompts and the train split has none."""

    @abstractmethod
    def num_rows(self, split: str) -> int:
        """Return the number of rows in a split."""

    def num_rows_of(self, growth: float) -> float:
        """Return the number of rows, of all splits together, that a text `growth` times as long would have."""
        return growth * sum(map(self.num_rows, SPLITS))

    @abstractmethod
    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows [start, stop) in record batches of record_batch_rows rows; the last one may be shorter."""

    def online_work(self, num_rows: int) -> Callable[[], None] | None:
        """Return the teacher's work in online distillation on the first num_rows rows of the train split.

        Online distillation, which has no cache, repeats this work for every student and epoch. None: --plan does not
        compare this kind.
        """
        return None
