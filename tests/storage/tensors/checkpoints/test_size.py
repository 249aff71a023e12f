"""A config is weighed before anything of its size is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from storage.errors import UnusableModelError
from storage.tensors.checkpoints.size import require_room


def test_parameters_are_counted_without_memory() -> None:
    def build() -> nn.Module:
        return nn.Linear(1 << 24, 1 << 24, bias=False)

    require_room(build, 1 << 48, "memory")
    with pytest.raises(
        UnusableModelError, match=r"281,474,976,710,656 parameters, at most 281,474,976,710,655 .* disk"
    ):
        require_room(build, (1 << 48) - 1, "disk")
    assert torch.empty(1).device.type == "cpu"


def test_parts_are_counted_while_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.tensors.checkpoints.size._MOST_MODULES", 10)
    require_room(lambda: nn.Sequential(*[nn.Identity() for _ in range(10)]), 1, "memory")
    with pytest.raises(UnusableModelError, match="more than 10 layers"):
        require_room(lambda: nn.Sequential(*[nn.Identity() for _ in range(11)]), 1, "memory")
    nn.Sequential(*[nn.Identity() for _ in range(11)])
