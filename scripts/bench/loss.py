"""Measure the sparse distillation loss against PyTorch's next-token loss on full logits, with the same head.

Both sides start from hidden states, run forward and backward, and end with the gradients of hidden states and head
weight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.support.caches import write_soft_targets_cache
from scripts.support.measure import Action, interleaved_seconds, peak_extra_bytes
from scripts.support.neighbour import NEIGHBOURS, busy_neighbour
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.output_head import OutputHead
from student.losses.batches import block_batch
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.targets import SparseTargets

_TIME_TARGET, _MEMORY_TARGET, _BESIDE_TARGET = 0.80, 0.25, 1.10
_TAIL_WEIGHT = 1 / 32
_REFERENCE = "cross-entropy on full logits"
_WORDS = {"float32": "float32", "bfloat16": "bf16 autocast"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Positions N, width d and vocabulary V. `top_k` is the head size of the targets whose tail is one number."""

    positions: int
    width: int
    vocab_size: int
    top_k: int


SHAPES = {
    "full": Shape(positions=4096, width=512, vocab_size=50_257, top_k=64),
    "tiny": Shape(positions=100, width=16, vocab_size=300, top_k=8),
}


def shape_of(config: BenchConfig) -> Shape:
    """Return the shape to measure. With --size gpu it is that of a model's head."""
    if config.size == "gpu":
        model = config.model
        return Shape(positions=16_384, width=model["n_embd"], vocab_size=model["vocab_size"], top_k=64)
    return SHAPES[config.size]


class Head:
    """Random hidden states [N, d] and head weight [V, d], as leaves of the autograd graph."""

    def __init__(self, shape: Shape, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self._hidden = torch.randn(shape.positions, shape.width, generator=generator).to(device).requires_grad_()
        weight = torch.randn(shape.vocab_size, shape.width, generator=generator) / shape.width**0.5
        self._weight = weight.to(device).requires_grad_()

    def reference(self, label_ids: Tensor, is_half: bool = False) -> tuple[Tensor, Tensor]:
        """Return the gradients of the mean next-token loss by autograd."""
        with self._autocast(is_half):
            total = F.cross_entropy(self._hidden @ self._weight.T, label_ids)
        return self._gradients(total)

    def ours(self, targets: SparseTargets, loss: HeadLoss, is_half: bool = False) -> tuple[Tensor, Tensor]:
        """Return the gradients of the mean of the weighted losses."""
        with self._autocast(is_half):
            total = fused_head_loss(self._hidden, OutputHead(weight_VD=self._weight), targets, loss)[0] / len(targets)
        return self._gradients(total)

    def _gradients(self, total: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = torch.autograd.grad(total, (self._hidden, self._weight))
        return hidden, weight

    def _autocast(self, is_half: bool) -> torch.autocast | nullcontext[None]:
        return torch.autocast(self._hidden.device.type, dtype=torch.bfloat16) if is_half else nullcontext()


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare time and memory of both kinds of targets, and on a CPU, time beside a busy neighbour.

    Time alone in bfloat16 has no target.
    """
    if config.device == "cpu":
        use_fast_matmul()
    shape = shape_of(config)
    head = Head(shape, config.device)
    kinds = {
        "sampled tail": (make_targets(shape, 1, _TAIL_WEIGHT, config.device), forward_kl(is_unbiased=True)),
        f"top {shape.top_k}": (make_targets(shape, shape.top_k, None, config.device), forward_kl(is_unbiased=False)),
    }
    passes = {_WORDS[dtype]: _passes(head, kinds, dtype == "bfloat16") for dtype in config.dtypes}
    yield from _memory(next(iter(passes.values())), config.device)
    for words, actions in passes.items():
        yield from _times(actions, f"time, {words}", _TIME_TARGET if words == "float32" else None, config)
    for neighbour in NEIGHBOURS if config.device == "cpu" else ():
        with busy_neighbour(neighbour):
            for words, actions in passes.items():
                yield from _times(actions, f"time, {words}, beside {neighbour}", _BESIDE_TARGET, config)


def _passes(head: Head, kinds: dict[str, tuple[SparseTargets, HeadLoss]], is_half: bool) -> dict[str, Action]:
    """Return the forward and backward pass of each kind of targets, and of the reference."""
    (targets, _), *_ = kinds.values()
    ours: dict[str, Action] = {name: partial(head.ours, *kind, is_half) for name, kind in kinds.items()}
    return ours | {_REFERENCE: partial(head.reference, targets.label_ids, is_half)}


def _times(passes: dict[str, Action], what: str, target: float | None, config: BenchConfig) -> Iterator[Comparison]:
    return _each(interleaved_seconds(passes, config.rounds, config.device), what, "s", target)


def _memory(passes: dict[str, Action], device: str) -> Iterator[Comparison]:
    found = {name: [float(peak_extra_bytes(action, device))] for name, action in passes.items()}
    return _each(found, "peak memory beyond inputs", "B", _MEMORY_TARGET)


def _each(values: dict[str, list[float]], what: str, unit: str, target: float | None) -> Iterator[Comparison]:
    """Compare each kind of targets with the reference."""
    for name in (name for name in values if name != _REFERENCE):
        yield Comparison.between(values, name, _REFERENCE, what=what, unit=unit, target=target)


def make_targets(shape: Shape, top_k: int, tail_weight: float | None, device: str) -> SparseTargets:
    """Return targets of `shape.positions` positions, decoded as training decodes them."""
    block_size = 64
    with tempfile.TemporaryDirectory() as scratch:
        cache = write_soft_targets_cache(
            Path(scratch) / "cache",
            -(-2 * shape.positions // block_size),  # targets where two documents meet are not valid
            block_size,
            shape.vocab_size,
            top_k=top_k,
            tail_weight=tail_weight,
        )
        (table,) = pa.Table.from_batches(cache.record_batches("soft_targets", "train")).combine_chunks().to_batches()
        batch = block_batch(table, tail_weight=tail_weight, temperature=1.0, device=torch.device(device))
    return batch.targets.slice(0, shape.positions)


def forward_kl(*, is_unbiased: bool, soft_weight: float = 1.0, label_weight: float = 0.1) -> HeadLoss:
    """Return the forward KL loss, by default with the trainer's weights."""
    return HeadLoss(
        divergence="forward_kl",
        unbiased=is_unbiased,
        temperature=1.0,
        soft_weight=soft_weight,
        label_weight=label_weight,
    )
