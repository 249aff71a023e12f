"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from storage.errors import ConfigError
from storage.tensors.devices import find_device


def test_devices_that_are_there() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:-2"])
def test_devices_that_are_not(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^--device {name}: "):
        find_device(name)
