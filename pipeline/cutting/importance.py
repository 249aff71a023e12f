"""Measure in one pass over a text how much each layer, neuron and head of a model does.

Shape legend: N blocks, T positions, D width, P positions of a pass, K values of a module,
L layers, F neurons and H heads of a layer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cutting.rebuilding import layers_of
from pipeline.cutting.width import Family, head_dim_of
from storage.tensors.model_facts import body_of
from storage.tensors.packing import Isolation, isolated_hidden_states

# Token ids and positions, both [N, T] on the model's device. Positions start at 0 in each document.
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much each part of a model does to a text: layers [L], neurons [L, F] and heads [L, H]; None is not measured.

    A layer: the mean over positions of 1 − cos(x, y), x being what it gets and y what it returns. This is the Block
    Influence of ShortGPT (Men et al. 2024, equation 1): 0 for a layer that only rescales. A neuron: the mean of its
    absolute activation. A head: the mean of the norm of its output. Both follow Minitron (Muralidharan et al. 2024,
    section 2.2), with means for its sums.
    """

    layers: tuple[float, ...]
    neurons_LF: Tensor | None = None
    heads_LH: Tensor | None = None


def layer_importance(model: Any, batches: Iterable[Batch], isolation: Isolation = Isolation.PACKED) -> list[float]:
    """Return the importance of each layer (see Importance), measured in one pass.

    batches: token ids and positions; isolation: how the model keeps the documents of a block apart.
    Raises UncuttableTeacherError when the model has no one list of layers.
    """
    return list(measure(model, batches, isolation).layers)


def measure(model: Any, batches: Iterable[Batch], isolation: Isolation, family: Family | None = None) -> Importance:
    """Return the importance of the layers of a model, and with a family that of neurons and heads, in one pass."""
    layers = layers_of(model)[1]
    with contextlib.ExitStack() as stack:
        influence = [stack.enter_context(block_influence(layer)) for layer in layers]
        neurons, heads = [], []
        if family is not None:
            entered = [layer.get_submodule(family.neurons_enter) for layer in layers]
            neurons = [stack.enter_context(of_inputs(module, torch.abs)) for module in entered]
        if family is not None and family.heads is not None:
            entered = [layer.get_submodule(family.heads_enter) for layer in layers]
            norms = functools.partial(_norms, head_dim_of(model))
            heads = [stack.enter_context(of_inputs(module, norms)) for module in entered]
        run(model, batches, isolation)
    return Importance(
        layers=tuple(float(mean.value_K) for mean in influence),
        neurons_LF=torch.stack([mean.value_K for mean in neurons]) if neurons else None,
        heads_LH=torch.stack([mean.value_K for mean in heads]) if heads else None,
    )


def _norms(head_dim: int, outputs_PD: Tensor) -> Tensor:
    """Return the norm of each head's output [P, H]."""
    outputs_PHD = outputs_PD.double().view(len(outputs_PD), -1, head_dim)
    norms_PH: Tensor = torch.linalg.vector_norm(outputs_PHD, dim=2)
    return norms_PH


@dataclass(kw_only=True)
class Mean:
    """The mean over positions of K values a position, in float64."""

    total_K: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    num_positions: int = 0

    def add(self, values_PK: Tensor) -> None:
        """Add positions."""
        self.total_K = self.total_K.to(values_PK.device) + values_PK.double().sum(0)
        self.num_positions += len(values_PK)

    @property
    def value_K(self) -> Tensor:
        """The mean, on the CPU."""
        return (self.total_K / self.num_positions).cpu()


@contextlib.contextmanager
def block_influence(layer: nn.Module) -> Iterator[Mean]:
    """Yield the mean of 1 − cos of a layer's input and output, over the passes that run inside the block."""
    mean = Mean()

    def add(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before = args[0] if args else named["hidden_states"]
        after = output if isinstance(output, Tensor) else output[0]
        cosine = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
        mean.add(1 - cosine.reshape(-1, 1))

    with layer.register_forward_hook(add, with_kwargs=True):
        yield mean


@contextlib.contextmanager
def of_inputs(module: nn.Module, measure: Callable[[Tensor], Tensor]) -> Iterator[Mean]:
    """Yield the mean of measure(inputs [P, D]) [P, K] over what a module gets inside the block."""
    mean = Mean()

    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        mean.add(measure(args[0].flatten(0, -2)))

    with module.register_forward_pre_hook(add):
        yield mean


@torch.inference_mode()
def run(model: Any, batches: Iterable[Batch], isolation: Isolation) -> None:
    """Run the model's body over blocks. Each document gets what it gets alone, and no pass holds padding."""
    for input_ids_NT, position_ids_NT in batches:
        isolated_hidden_states(body_of(model), input_ids_NT, position_ids_NT, isolation, shortest_share=1.0)
