"""Keep some MLP neurons and attention heads of each layer, in the families whose configs can state it.

Shape legend: P positions, H query heads, F neurons.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cutting.rebuilding import layers_of, own_name, text_settings
from pipeline.errors import UncuttableTeacherError

Axes = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a layer keeps its neurons and heads: the axis of each weight along which they lie.

    neurons_enter, heads_enter: the modules that take the activations of neurons and the outputs of heads.
    """

    neurons: Axes
    neurons_enter: str
    heads: Axes | None = None
    key_heads: Axes | None = None
    heads_enter: str = ""


@dataclass(frozen=True, kw_only=True)
class Width:
    """What is kept of one layer, by ascending numbers: neurons, query heads, and heads of keys and values."""

    neurons: tuple[int, ...]
    heads: tuple[int, ...]
    key_heads: tuple[int, ...]


_GPT2 = Family(neurons={"mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0, "mlp.c_proj.weight": 0}, neurons_enter="mlp.c_proj")
_LLAMA = Family(
    neurons={
        **dict.fromkeys(("mlp.gate_proj.weight", "mlp.gate_proj.bias", "mlp.up_proj.weight", "mlp.up_proj.bias"), 0),
        "mlp.down_proj.weight": 1,
    },
    neurons_enter="mlp.down_proj",
    heads={"self_attn.q_proj.weight": 0, "self_attn.q_proj.bias": 0, "self_attn.o_proj.weight": 1},
    key_heads=dict.fromkeys((f"self_attn.{name}_proj.{kind}" for name in "kv" for kind in ("weight", "bias")), 0),
    heads_enter="self_attn.o_proj",
)
FAMILIES: Mapping[str, Family] = {
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}
"""By model type."""
SIZES = ("intermediate_size", "in_features", "out_features", "nf", "nx", "num_key_value_groups")
"""Settings of a layer's modules that follow from its width."""


def family_of(model: Any, *, cuts_heads: bool) -> Family:
    """Return the family of a model; raise UncuttableTeacherError for one whose neurons, or heads, cannot be cut."""
    model_type = model.config.get_text_config().model_type
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UncuttableTeacherError(
            f"neurons and heads can be left out of {known}, and it is a {model_type}",
            "leave out --keep-mlp and --keep-heads, and keep fewer layers",
        )
    if cuts_heads and family.heads is None:
        raise UncuttableTeacherError(
            f"a {model_type} config states no width of a head, which follows from their number, so all have to stay",
            "leave out --keep-heads, and keep fewer layers or neurons",
        )
    return family


def whole_width(model: Any) -> Width:
    """Return all neurons and heads of a layer. Those of a family without heads to cut count as heads too."""
    config = model.config.get_text_config()
    family = family_of(model, cuts_heads=False)
    name = f"{family.neurons_enter}.weight"
    num_neurons = layers_of(model)[1][0].get_parameter(name).shape[family.neurons[name]]
    num_heads = config.num_attention_heads
    num_key_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return Width(
        neurons=tuple(range(num_neurons)), heads=tuple(range(num_heads)), key_heads=tuple(range(num_key_heads))
    )


def head_dim_of(model: Any) -> int:
    """Return the width of a head."""
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def narrowed_weights(model: Any, weights: dict[str, Tensor], path: str, widths: Sequence[Width]) -> dict[str, Tensor]:
    """Return weights, by name, of which those of layer i of the list at `path` have widths[i]."""
    family, head_dim = family_of(model, cuts_heads=False), head_dim_of(model)
    kept = dict(weights)
    for layer, width in enumerate(widths):
        for numbers, unit, axes in (
            (width.neurons, 1, family.neurons),
            (width.heads, head_dim, family.heads or {}),
            (width.key_heads, head_dim, family.key_heads or {}),
        ):
            index = (torch.tensor(numbers)[:, None] * unit + torch.arange(unit)).flatten()
            for name, axis in axes.items():
                if (full := f"{path}.{layer}.{name}") in kept:
                    kept[full] = kept[full].index_select(axis, index.to(kept[full].device))
    return kept


def narrow_settings(model: Any, settings: dict[str, Any], width: Width) -> None:
    """State the number of neurons and heads of `width` in a config, given as a dict."""
    text, family = text_settings(model, settings), family_of(model, cuts_heads=False)
    text["n_inner" if family is _GPT2 else "intermediate_size"] = len(width.neurons)
    if family.heads is not None:
        text |= {"head_dim": head_dim_of(model), "num_key_value_heads": len(width.key_heads)}
        text[own_name(model, "num_attention_heads")] = len(width.heads)


@contextlib.contextmanager
def silencing(model: Any, layers: Sequence[int], widths: Sequence[Width]) -> Iterator[None]:
    """Let the neurons and heads of some layers that are not in their widths say nothing."""
    family, head_dim = family_of(model, cuts_heads=False), head_dim_of(model)
    hooks: list[Any] = []
    for layer, width in zip(layers, widths, strict=True):
        module = layers_of(model)[1][layer]
        masks = {family.neurons_enter: _masked(width.neurons, 1)}
        if family.heads is not None:
            masks[family.heads_enter] = _masked(width.heads, head_dim)
        hooks += [module.get_submodule(name).register_forward_pre_hook(mask) for name, mask in masks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _masked(numbers: Sequence[int], unit: int) -> Callable[..., Any]:
    def mask(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        is_kept = torch.zeros(args[0].shape[-1] // unit, dtype=torch.bool, device=args[0].device)
        is_kept[list(numbers)] = True
        return (args[0].masked_fill(~is_kept.repeat_interleave(unit), 0.0),)

    return mask
