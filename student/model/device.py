"""Choose the device of a run."""

from __future__ import annotations

import torch

from storage.tensors.devices import find_device
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.memory import keep_freed_memory
from student.processes import gpu_index


def choose_device(name: str) -> torch.device:
    """Return the device that --device names; raise ConfigError when it does not exist.

    For "auto", take the GPU of this process, if there is one. For a CPU, turn on the fast path of float32 products if
    it is as exact, and keep freed memory.
    """
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{gpu_index()}"
    device = find_device(name)
    if device.type == "cpu":
        use_fast_matmul()
        keep_freed_memory()
    return device
