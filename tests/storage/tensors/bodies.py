"""Bodies of two kinds of model, small enough to be read: sums of ids so far, kept apart by positions or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Sums(nn.Module):
    """Hidden states [N, T, 2]: the share of the row's ids so far, and a learnt multiple of it.

    packs: whether sums start again at position 0; otherwise position ids are refused, as by recurrent models.
    """

    def __init__(self, *, packs: bool) -> None:
        super().__init__()
        self._packs = packs
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.shapes: list[tuple[int, int]] = []

    def forward(self, input_ids: Tensor, use_cache: bool, **more: Any) -> Any:
        if more and not self._packs:
            raise TypeError("position_ids")
        assert not use_cache
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        return SimpleNamespace(last_hidden_state=self.hidden(input_ids.double() + 1, more.get("position_ids")))

    def hidden(self, values_NT: Tensor, positions_NT: Tensor | None) -> Tensor:
        sums_NT = values_NT.cumsum(1)
        if positions_NT is not None:
            places_NT = torch.arange(values_NT.shape[1]).expand_as(values_NT)
            before_NT = (sums_NT - values_NT).gather(1, (places_NT - positions_NT).clamp(min=0))
            sums_NT = sums_NT - before_NT
        return torch.stack([sums_NT, self.weight * sums_NT], dim=2)


class Leaking(Sums):
    """Takes position ids and ignores them."""

    def __init__(self) -> None:
        super().__init__(packs=True)

    def hidden(self, values_NT: Tensor, positions_NT: Tensor | None) -> Tensor:
        return super().hidden(values_NT, None)


class OfLongest(Sums):
    """A function of the longest text of the pass, once that has more than 10 tokens: as longrope."""

    def hidden(self, values_NT: Tensor, positions_NT: Tensor | None) -> Tensor:
        longest = values_NT.shape[1] if positions_NT is None else int(positions_NT.max()) + 1
        return super().hidden(values_NT, positions_NT) * (2.0 if longest > 10 else 1.0)


class Acausal(Sums):
    """Sees tokens that come later."""

    def hidden(self, values_NT: Tensor, positions_NT: Tensor | None) -> Tensor:
        return super().hidden(values_NT, positions_NT) + values_NT.sum(1)[:, None, None]


class OfBatch(Sums):
    """Sees the other rows of its pass."""

    def hidden(self, values_NT: Tensor, positions_NT: Tensor | None) -> Tensor:
        return super().hidden(values_NT, positions_NT) + values_NT.shape[0]
