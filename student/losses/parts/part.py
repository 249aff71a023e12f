"""The interface of a part of the loss, which learns from the rows of one kind.

To add a part, write a subclass of `LossPart` in a new file and add it to the table in student/losses/parts/table.py.
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
    """Turn rows of one kind into batches, and batches into sums of losses.

    kind: the kind of the rows; the part's weight in --mix has the same name. default_weight: the weight if --mix gives
    none and the cache holds rows of this kind. further_weights: other weights in --mix that need rows of this kind,
    with their defaults.
    """

    kind: ClassVar[str]
    default_weight: ClassVar[float]
    further_weights: ClassVar[Mapping[str, float]] = {}

    @abstractmethod
    def __init__(self, model: Any, cache: Cache, config: TrainConfig, weights: Mapping[str, float]) -> None:
        """weights: those of all parts by name; at least one weight of this part is above 0.

        Raise RecordError when the cache does not state a setting that the part needs, and a StudentError when the cache
        cannot serve the settings in `config`.
        """

    @classmethod
    def is_used(cls, weights: Mapping[str, float]) -> bool:
        """Return whether a weight above 0 needs rows of this kind."""
        return any(weights[name] > 0 for name in (cls.kind, *cls.further_weights))

    @staticmethod
    @abstractmethod
    def step_rows(config: TrainConfig) -> int:
        """Return the rows per step, over all processes."""

    @abstractmethod
    def batch(self, rows: pa.RecordBatch) -> Batch:
        """Return rows as tensors on the model's device; there may be no rows."""

    @abstractmethod
    def num_targets(self, batch: Batch) -> int:
        """Return how many items the loss is a mean over: positions, tokens or prompts."""

    @abstractmethod
    def num_tokens(self, batch: Batch) -> int:
        """Return the number of tokens that the model reads, padding included."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum over targets, and the unweighted sum of each loss in nats by name.

        Only the weighted sum carries the gradient.
        """

    def remark(self) -> str | None:
        """Return a line for the user about an effect of these settings on this cache, None if there is none."""
        return None
