"""Make GPT-2's layers faster by fewer passes over memory.

The activation becomes one kernel. On a CPU it becomes part of the matrix product before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D


def use_fast_layers(model: nn.Module) -> None:
    """Replace layers of a model that is not trained by faster layers that compute the same function.

    Modules that compute the tanh form of GELU (Hendrycks & Gimpel 2016, section 2) in steps become PyTorch's kernel.
    Where oneDNN multiplies bfloat16 on a CPU, GPT-2's linear layers add their bias inside the matrix product. The first
    one of each MLP also applies the activation there.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(module, name, GELUTanh())
    if not _has_fused_products(model):
        return
    for module in list(model.modules()):
        if isinstance(module, GPT2MLP) and isinstance(module.act, GELUTanh):
            module.c_fc, module.act = _FusedLinear(module.c_fc, then_gelu=True), nn.Identity()
        for name, child in module.named_children():
            if isinstance(child, Conv1D):
                setattr(module, name, _FusedLinear(child, then_gelu=False))


class _FusedLinear(nn.Module):
    """`Conv1D` as one oneDNN product that adds the bias and, with `then_gelu`, applies the tanh form of GELU.

    The activation is applied before the product is rounded to bfloat16.
    """

    def __init__(self, layer: Conv1D, *, then_gelu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.T.contiguous())
        self.bias = layer.bias
        self._pointwise = ("gelu", "tanh") if then_gelu else ("none", "")

    def forward(self, inputs: Tensor) -> Tensor:
        name, variant = self._pointwise
        # torch.compile lowers such layers to this operator. PyTorch has no public name for it.
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, name, [], variant)
        return outputs


def _has_fused_products(model: nn.Module) -> bool:
    """Return whether the model is bfloat16 on a CPU, oneDNN supports that there, and PyTorch has the operator."""
    weights = next(model.parameters(), None)
    return (
        weights is not None
        and weights.device.type == "cpu"
        and weights.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
