"""What every loss behind the output head shares: chunk sizes, precision, and the head's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Smaller chunks spend their time adding up the head's gradient, larger ones their memory.
_CHUNK_POSITIONS = {"cpu": 256, "cuda": 4096}


def chunk_positions_on(device: torch.device) -> int:
    """Positions that go through the head at a time."""
    return _CHUNK_POSITIONS.get(device.type, 256)


def upcast(values: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32: the precision that losses are computed in."""
    return values if values.dtype == torch.float64 else values.float()


def matmul_dtype_of(hidden: Tensor) -> torch.dtype:
    """The dtype that the head multiplies in: autocast's where it is on."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


def add_product(grad_weight_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """grad_weight += gradᵀ · hidden, in place."""
    if grad_weight_VD.dtype == grad_CV.dtype:
        grad_weight_VD.addmm_(grad_CV.T, hidden_CD)
    else:
        grad_weight_VD.add_(grad_CV.T @ hidden_CD)
