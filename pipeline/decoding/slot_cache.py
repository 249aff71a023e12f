"""A key-value cache for a batch whose rows change. Its memory is allocated once.

A slot is a row of the batch. All slots append at the same column, `stop`. This is the layout of left padding, which
every attention of transformers supports, also with sliding windows. A text that enters later starts further to the
right. Attention gets the columns from the first one that a text still uses. When the last column is filled, the columns
in use move to the left.

Shape legend: S slots, H heads of keys and values, L columns, D width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin


def prefill_cache() -> Any:
    """Return an empty cache for prompts to place in a SlotCache. Layers with a window keep all columns too."""
    return DynamicCache()


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers cache with `num_slots` slots and the layer shapes of `prefilled`.

    longest_prompt: tokens of the longest prompt that will be placed. spare_columns: number of further
    columns, which are filled before the columns in use must move.
    """

    def __init__(self, prefilled: Any, num_slots: int, *, longest_prompt: int, spare_columns: int) -> None:
        self._longest_prompt = self._first = self._stop = longest_prompt
        self._starts = np.full(num_slots, longest_prompt)
        self._num_columns = longest_prompt + spare_columns
        layers = [_SlotLayer(layer, num_slots, self._num_columns, longest_prompt) for layer in prefilled.layers]
        super().__init__(layers=layers)

    def place(self, slots: NDArray[np.int64], prefilled: Any, rows: NDArray[np.int64], lengths: NDArray[Any]) -> None:
        """Replace the content of `slots` by `rows` of left-padded prompts, which have `lengths` tokens."""
        self._starts[slots] = self._stop - lengths
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            layer.place(_on(source.keys, slots), source, _on(source.keys, rows))

    def release(self, slots: NDArray[np.int64]) -> None:
        """Mark slots as empty."""
        self._starts[slots] = self._stop

    def keep(self, slots: NDArray[np.int64]) -> None:
        """Keep only these slots and renumber them from 0."""
        self._starts = self._starts[slots]
        for layer in self.layers:
            layer.keep(_on(layer.keys, slots))

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], num_columns: int) -> None:
        """Copy the last num_columns columns of `sources` over those of `targets`. No slot may be in both."""
        for layer in self.layers:
            layer.copy(_on(layer.keys, sources), _on(layer.keys, targets), num_columns)

    def open_column(self) -> tuple[Tensor, Tensor]:
        """Make room for one more token in every slot.

        Return which columns each slot attends to, the new one included [S, L], and the new tokens' positions [S, 1].
        """
        self._first = int(self._starts.min())
        if self._stop == self._num_columns:
            self._move_back()
        for layer in self.layers:
            layer.first = self._first
        starts_S = _on(self.layers[0].keys, self._starts)
        columns_L = torch.arange(self._first, self._stop + 1, device=starts_S.device)
        positions_S1 = self._stop - starts_S[:, None]
        self._stop += 1
        return columns_L >= starts_S[:, None], positions_S1

    def _move_back(self) -> None:
        stop = max(self._longest_prompt, self._stop - self._first)
        distance = self._stop - stop
        for layer in self.layers:
            layer.move_back(self._first, distance)
        self._starts -= distance
        self._first -= distance
        self._stop = stop


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values [S, H, L, D] of one layer. Columns `first` to `stop` are in use."""

    def __init__(self, like: Any, num_slots: int, num_columns: int, stop: int) -> None:
        super().__init__()
        # Zeros: masked values are multiplied by 0, so they must be finite.
        self.keys, self.values = (
            part.new_zeros(num_slots, part.shape[1], num_columns, part.shape[3]) for part in (like.keys, like.values)
        )
        self.is_initialized = True
        self.first = self.stop = stop

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: all memory is allocated."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, then return all that are in use."""
        stop = self.stop + key_states.shape[2]
        self.keys[:, :, self.stop : stop] = key_states
        self.values[:, :, self.stop : stop] = value_states
        self.stop = stop
        return self.keys[:, :, self.first : stop], self.values[:, :, self.first : stop]

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.stop - self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns in use after `query_length` more, and the offset of the mask, 0."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1 for no maximum: SlotCache.open_column makes room."""
        return -1

    def place(self, slots: Tensor, source: Any, rows: Tensor) -> None:
        columns = slice(self.stop - source.keys.shape[2], self.stop)
        self.keys[:, :, columns].index_copy_(0, slots, source.keys.index_select(0, rows))
        self.values[:, :, columns].index_copy_(0, slots, source.values.index_select(0, rows))

    def keep(self, slots: Tensor) -> None:
        self.keys, self.values = self.keys.index_select(0, slots), self.values.index_select(0, slots)

    def copy(self, sources: Tensor, targets: Tensor, num_columns: int) -> None:
        for part in (
            self.keys[:, :, self.stop - num_columns : self.stop],
            self.values[:, :, self.stop - num_columns : self.stop],
        ):
            part.index_copy_(0, targets, part.index_select(0, sources))

    def move_back(self, first: int, distance: int) -> None:
        for part in (self.keys, self.values):
            part[:, :, first - distance : self.stop - distance] = part[:, :, first : self.stop].clone()
        self.stop -= distance


def _on(like: Tensor, indices: NDArray[Any]) -> Tensor:
    return torch.from_numpy(indices.astype(np.int64)).to(like.device)
