"""The interface of a producer: what a run asks of the code that makes the rows of one kind.

A producer is a subclass of `Producer` in a file of its own and a line in the table of pipeline/producers/table.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import pyarrow as pa

from pipeline.config import PrecomputeConfig
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.teacher.model import Teacher


class Producer(ABC):
    """Makes the rows of one kind.

    kind: its name, as in --kinds and in the cache. most_probe_rows: rows that --plan makes to estimate the others.
    tokens_per_row: most tokens that the teacher reads for a row. longest_prompt_tokens: 0 when rows have no prompts.
    """

    kind: ClassVar[str]
    most_probe_rows: ClassVar[int]
    tokens_per_row: int
    longest_prompt_tokens: int = 0

    @classmethod
    @abstractmethod
    def context_needed(cls, config: PrecomputeConfig) -> tuple[str, int]:
        """The flags that decide how long rows are, and how many tokens the teacher must be able to read for them."""

    @classmethod
    @abstractmethod
    def from_text(cls, teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> Producer:
        """The producer of a run; raises NoPromptsError when it would have no rows to train on."""

    @abstractmethod
    def num_rows(self, split: str) -> int:
        """Rows in a split."""

    @abstractmethod
    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Rows [start, stop) in record batches of record_batch_rows rows, the last one perhaps shorter."""

    def online_work(self, num_rows: int) -> Callable[[], None] | None:
        """The teacher's work on the first rows of the train split in distillation without a cache; None: not compared.

        Distillation without a cache does this work for every student and epoch.
        """
        return None
