"""Find the device that a command's --device names."""

from __future__ import annotations

import torch

from storage.errors import ConfigError, first_line


def find_device(name: str) -> torch.device:
    """Return the device of this name; "auto" means a CUDA GPU if there is one, else the CPU.

    Raise ConfigError when the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: {first_line(error)}") from error
