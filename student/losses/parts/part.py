"""The interface of a part of the loss: what training asks of the code that learns from the rows of one kind.

A part is a subclass of `LossPart` in a file of its own and a line in the table of student/losses/parts/table.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa
from torch import Tensor

from storage.reading.cache import Cache
from student.config import TrainConfig

Batch = TypeVar("Batch")


class LossPart(ABC, Generic[Batch]):
    """Turns rows of one kind into batches, and batches into sums of losses.

    kind: whose rows; its weight in --mix has the same name. default_weight: where --mix leaves it open and the cache
    holds rows. further_weights: other weights in --mix that need rows of this kind, with their defaults.
    """

    kind: ClassVar[str]
    default_weight: ClassVar[float]
    further_weights: ClassVar[Mapping[str, float]] = {}

    @abstractmethod
    def __init__(self, model: Any, cache: Cache, config: TrainConfig, weights: Mapping[str, float]) -> None:
        """`weights`: of all parts; one of this part's is above 0. Raises RecordError or StudentError."""

    @classmethod
    def is_used(cls, weights: Mapping[str, float]) -> bool:
        """Whether anything in the mix needs rows of this kind."""
        return any(weights[name] > 0 for name in (cls.kind, *cls.further_weights))

    @staticmethod
    @abstractmethod
    def step_rows(config: TrainConfig) -> int:
        """Rows per step, over all processes."""

    @abstractmethod
    def batch(self, rows: pa.RecordBatch) -> Batch:
        """Rows, perhaps none, as tensors on the model's device."""

    @abstractmethod
    def num_targets(self, batch: Batch) -> int:
        """Things of which the loss is a mean: positions, tokens or prompts."""

    @abstractmethod
    def num_tokens(self, batch: Batch) -> int:
        """Tokens that the model reads, padding included."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over targets, which carries the gradient, and each loss's plain sum in nats by name."""

    def remark(self) -> str | None:
        """What users should know about how these settings meet this cache."""
        return None
