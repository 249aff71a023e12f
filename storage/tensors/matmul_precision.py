"""Make float32 matrix products faster on CPUs where this costs no precision."""

from __future__ import annotations

import torch

_SIZE = 256
# Largest error, relative to the largest entry. Plain float32 is near 1e-6, inputs rounded to bfloat16 near 3e-3.
_TOLERANCE = 1e-5


def use_fast_matmul(*, inputs_are_bfloat16: bool = False) -> None:
    """Set the precision of float32 matrix products to "medium", and back to "highest" when that loses precision.

    "medium" lets a processor use its fast path. On some CPUs that path emulates float32 accuracy, on others it rounds
    the inputs to bfloat16. So multiply two random matrices and measure the error. Inputs that are bfloat16 numbers lose
    nothing by the rounding, so skip the measurement for them. Sums and results are float32 in all cases.
    """
    if inputs_are_bfloat16:
        torch.set_float32_matmul_precision("medium")
        return
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    truth = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    error = float(((a @ b).double() - truth).abs().max() / truth.abs().max())
    if error > _TOLERANCE:
        torch.set_float32_matmul_precision("highest")
