"""Choose what is kept: layers evenly, by their numbers or by importance, and of each layer the strongest parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.cutting.config import CutConfig
from pipeline.cutting.importance import Importance
from pipeline.cutting.width import Width
from pipeline.errors import NoSuchLayerError
from storage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The layers that are kept, by ascending numbers, and what is kept of each; None keeps each whole."""

    layers: tuple[int, ...]
    widths: tuple[Width, ...] | None = None


def require_layers(config: CutConfig, num_layers: int) -> None:
    """Raise NoSuchLayerError when --layers asks for layers that a teacher of num_layers does not have."""
    largest = max(config.named_layers) if config.named_layers else int(config.layers or 1) - 1
    if largest >= num_layers:
        raise NoSuchLayerError(str(config.layers), num_layers)


def choose_layers(config: CutConfig, num_layers: int, importance: Importance | None) -> tuple[int, ...]:
    """Return the layers that a config keeps of num_layers."""
    if config.layers is None:
        return tuple(range(num_layers))
    if config.named_layers is not None:
        return config.named_layers
    num_kept = int(config.layers)
    if config.by == "even":
        return even_layers(num_kept, num_layers)
    assert importance is not None
    return strongest(importance.layers, num_kept)


def even_layers(num_kept: int, num_layers: int) -> tuple[int, ...]:
    """Return evenly spaced layers with both ends among them; the first layer when one is kept.

    Layer i of N is round(i (L − 1) / (N − 1)), halves up. One layer is the first: alone, it
    left a small trained GPT-2 of five layers at 2.93 nats a token, the others at 3.98 or more (the whole: 2.50).
    """
    if num_kept == 1:
        return (0,)
    steps = num_kept - 1
    return tuple((2 * i * (num_layers - 1) + steps) // (2 * steps) for i in range(num_kept))


def choose_width(config: CutConfig, whole: Width, neurons_F: Tensor, heads_H: Tensor | None) -> Width:
    """Return what is kept of a layer with the given importance of its neurons and query heads.

    A group is a head of keys and values with the query heads that read them. A share that leaves out a group leaves out
    whole groups, those with the least mean importance; a share that leaves out less than a group leaves out equally
    many query heads of each, so that the groups stay equally large.
    """
    neurons = strongest(neurons_F.tolist(), share_of(config.keep_mlp, len(whole.neurons)))
    if heads_H is None:
        return Width(neurons=neurons, heads=whole.heads, key_heads=whole.key_heads)
    by_group = heads_H.view(len(whole.key_heads), -1)
    num_groups, num_of_each = _counts_of_heads(config, whole)
    groups = strongest(by_group.mean(1).tolist(), num_groups)
    size = by_group.shape[1]
    heads = [group * size + head for group in groups for head in strongest(by_group[group].tolist(), num_of_each)]
    return Width(neurons=neurons, heads=tuple(heads), key_heads=groups)


def require_smaller(config: CutConfig, whole: Width) -> None:
    """Raise ConfigError when a share below 1 of neurons or heads is, rounded, all of them."""
    num_groups, num_of_each = _counts_of_heads(config, whole)
    for flag, share, part, num_kept, num in (
        ("--keep-mlp", config.keep_mlp, "neurons", share_of(config.keep_mlp, len(whole.neurons)), len(whole.neurons)),
        ("--keep-heads", config.keep_heads, "heads", num_groups * num_of_each, len(whole.heads)),
    ):
        if share < 1 and num_kept == num:
            groups = f" in {len(whole.key_heads)} groups" if part == "heads" else ""
            raise ConfigError(f"{flag} {share:g}: of {num} {part}{groups} that is, rounded, all; give a smaller share")


def _counts_of_heads(config: CutConfig, whole: Width) -> tuple[int, int]:
    """Return how many groups are kept, and how many query heads of each."""
    size = len(whole.heads) // len(whole.key_heads)
    num_groups = share_of(config.keep_heads, len(whole.key_heads))
    return num_groups, size if num_groups < len(whole.key_heads) else share_of(config.keep_heads, size)


def share_of(share: float, count: int) -> int:
    """Return the share of a count, rounded, at least 1."""
    return max(1, int(share * count + 0.5))


def strongest(importance: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the numbers of the `count` largest values, ascending; of equal ones, the earlier."""
    order = sorted(range(len(importance)), key=lambda number: -importance[number])
    return tuple(sorted(order[:count]))
