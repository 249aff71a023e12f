"""Keep some layers of a model. What is left computes what the model computes when the others are passed by."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.cutting.rebuilding import layers_of, num_layers_of, own_name, rebuilt, text_settings
from pipeline.cutting.same_function import require_same_function
from pipeline.cutting.width import SIZES, Width, narrow_settings, narrowed_weights, silencing
from pipeline.errors import UncuttableTeacherError

# Settings that count layers from the first on, that list the numbers of layers, and that state something of each layer.
_LEADING = re.compile(r"first_k_dense_replace|num_dense_layers|max_window_layers|default_num_hash_layers")
_NUMBERS = re.compile(r"mlp_only_layers|moe_layers|\w+_(indices|idxs|ids)")
_OF_EACH = re.compile(r"\w*(layers?|types?|pattern)(_\w+)?|intermediate_size|num_\w*heads\w*")


def keep_layers(model: Any, layers: Sequence[int], widths: Sequence[Width] | None = None) -> Any:
    """Return a model of the given layers of a causal language model, with copies of its weights; `model` stays whole.

    layers: numbers of layers, from 0, in ascending order. All of them give a model of equal weights and logits. widths:
    what is kept of each of these layers, all of equal size; None keeps all of each.

    Raises UncuttableTeacherError when the model has no one list of layers, or when layers cannot do without the others:
    they share weights or keys, or what they compute depends on their number in a way that no config can state.
    """
    path, whole = layers_of(model)
    weights = smaller_weights(model, model.state_dict(), layers, widths)
    smaller = rebuilt(model, smaller_settings(model, layers, widths), weights)
    _require_same_parts(whole, smaller.get_submodule(path), layers, () if widths is None else SIZES)
    left_out = sorted({*range(len(whole))} - {*layers})
    with passing_by(model, left_out), silencing(model, layers, widths) if widths else contextlib.nullcontext():
        require_same_function(smaller, model)
    return smaller


def smaller_weights(
    model: Any, weights: dict[str, Tensor], layers: Sequence[int], widths: Sequence[Width] | None = None
) -> dict[str, Tensor]:
    """Return what the smaller model has of some weights of `model`, by their names there. Whole ones are no copies."""
    path, _ = layers_of(model)
    kept = _renumbered(weights, path, layers)
    return kept if widths is None else narrowed_weights(model, kept, path, widths)


def smaller_settings(model: Any, layers: Sequence[int], widths: Sequence[Width] | None = None) -> dict[str, Any]:
    """Return the config of the smaller model as a dict."""
    settings = _settings_of(model, layers)
    if widths is not None:
        narrow_settings(model, settings, widths[0])
    return settings


@contextlib.contextmanager
def passing_by(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """Let some layers of a model return the hidden states that they get."""

    def pass_by(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        hidden_NTD = args[0] if args else named["hidden_states"]
        return hidden_NTD if isinstance(output, Tensor) else (hidden_NTD, *output[1:])

    hooks = [layers_of(model)[1][i].register_forward_hook(pass_by, with_kwargs=True) for i in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _renumbered(weights: dict[str, Tensor], path: str, layers: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of the kept layers under their new numbers, and those outside the layers."""
    numbers = {str(old): str(new) for new, old in enumerate(layers)}
    kept = {}
    for name, tensor in weights.items():
        if not name.startswith(f"{path}."):
            kept[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{path}.").partition(".")
        if number in numbers:
            kept[f"{path}.{numbers[number]}.{rest}"] = tensor
    return kept


def _settings_of(model: Any, layers: Sequence[int]) -> dict[str, Any]:
    """Return the config of a model of the kept layers, as a dict."""
    settings: dict[str, Any] = model.config.to_dict()
    text, num_layers = text_settings(model, settings), num_layers_of(model)
    for name, value in text.items():
        if isinstance(value, int) and _LEADING.fullmatch(name):
            text[name] = sum(layer < value for layer in layers)
        elif isinstance(value, list | tuple) and _NUMBERS.fullmatch(name):
            text[name] = [new for new, old in enumerate(layers) if old in value]
        elif isinstance(value, list | tuple) and len(value) == num_layers and _OF_EACH.fullmatch(name):
            text[name] = [value[layer] for layer in layers]
        elif name == "per_layer_config" and isinstance(value, dict):
            text[name] = {str(new): value[str(old)] for new, old in enumerate(layers) if str(old) in value}
    if "attention_types" in text:  # GPT-Neo's short form, from which it makes attention_layers
        text["attention_types"] = [[text["attention_layers"], 1]]
    text[own_name(model, "num_hidden_layers")] = len(layers)
    return settings


def _require_same_parts(
    whole: nn.ModuleList, kept: nn.ModuleList, layers: Sequence[int], may_differ: Sequence[str]
) -> None:
    """Raise UncuttableTeacherError when the settings of a layer's parts, but for its own number, have changed.

    A window of 4,096 tokens shows in no short text, and here it does.
    """
    for new, old in enumerate(layers):
        parts = dict(kept[new].named_modules())
        for name, module in whole[old].named_modules():
            for setting, value in vars(module).items():
                is_plain = isinstance(value, bool | int | float | str | None) and not setting.startswith("_")
                if not is_plain or setting in may_differ:
                    continue
                found = getattr(parts.get(name), setting, None)
                if found != value and (value, found) not in ((old, new), (old + 1, new + 1)):  # its own number
                    raise UncuttableTeacherError(f"layer {old} has {setting} {value}, and {found} as layer {new}")
