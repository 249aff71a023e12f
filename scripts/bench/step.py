"""Measure a whole training step on cached targets against a step on labels alone through transformers.

Both sides train the same model with the same optimiser, clipping and precision. Ours reads, verifies and decodes its
rows. The reference has its tokens in memory. A second reference is a model of the same size with transformers'
defaults: another activation kernel, attention and dropout. A third is the same model whose loss is nothing but the
three products of its head, over all positions at once.

No variant keeps freed memory, as the trainer does on a CPU (storage/tensors/memory.py): this is a process as PyTorch
makes it, and as other trainers have it.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.autograd.function import once_differentiable

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.support.caches import RECORD_BATCH_ROWS, write_soft_targets_cache
from scripts.support.measure import interleaved_seconds
from scripts.support.neighbour import NEIGHBOURS, busy_neighbour
from storage.reading.cache import Cache
from storage.reading.row_stream import RowStream
from storage.tensors.devices import find_device
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.model_facts import body_of
from student.config import TrainConfig
from student.losses.batches import block_batch
from student.model.presets import PRESETS
from student.training.learner import Learner, make_learner
from student.training.schedule import make_optimizer

_TARGET, _BESIDE_TARGET = 0.95, 1.0
_OURS, _REFERENCE, _DEFAULTS = "cached targets", "labels alone", "labels alone, transformers' defaults"
_PRODUCTS = "the head's three products alone"
# More than one group of shards, so that groups are opened, hashed and read again as in a larger cache.
_NUM_SHARDS = 8


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The student's preset, or the settings of a GPT2Config in its place, and the size of a step."""

    preset: str
    vocab_size: int
    batch_blocks: int
    block_size: int
    settings: dict[str, int] | None = None

    @property
    def gpt2(self) -> dict[str, int]:
        """Settings of the student's GPT2Config."""
        return (self.settings or PRESETS[self.preset]) | {"vocab_size": self.vocab_size}


SHAPES = {
    "full": (
        Shape(preset="distil", vocab_size=50_257, batch_blocks=16, block_size=128),
        Shape(preset="distil", vocab_size=50_257, batch_blocks=4, block_size=512),
    ),
    "tiny": (Shape(preset="mini", vocab_size=300, batch_blocks=4, block_size=16),),
}


def shapes_of(config: BenchConfig) -> tuple[Shape, ...]:
    """Return the shapes to measure. With --size gpu it is one step of 16,384 tokens of the model of --shape."""
    if config.size == "gpu":
        settings = config.model
        size = {"vocab_size": settings["vocab_size"], "batch_blocks": 32, "block_size": 512}
        return (Shape(preset="gpt2", settings=settings, **size),)
    return SHAPES[config.size]


class OurStep:
    """Training steps as the trainer runs them: its learner on rows of its stream."""

    def __init__(self, cache: Cache, shape: Shape, device: torch.device) -> None:
        preset = shape.preset if shape.settings is None else _config_file(cache, shape)
        config = TrainConfig(
            cache=cache.path, out=cache.path / "student", preset=preset, batch_blocks=shape.batch_blocks
        )
        self.learner: Learner = make_learner(config, cache, device)
        rows = RowStream(cache, "soft_targets", "train", batch_rows=shape.batch_blocks, seed=0)
        self._batches = rows.batches()
        self._steps = itertools.count()

    def __call__(self) -> dict[str, Tensor]:
        """Run the next step and return its losses."""
        losses, _ = self.learner.step(next(self._steps), {"soft_targets": next(self._batches).rows})
        return losses


class ReferenceStep:
    """Training steps as transformers documents them: `loss` of the model on its tokens, clipping, AdamW."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        loss: Callable[[Any, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        input_ids_NT: Tensor,
        autocast: torch.autocast,
        max_gradient_norm: float,
    ) -> None:
        self._model, self._loss, self._optimizer, self._autocast = model, loss, optimizer, autocast
        self._input_ids_NT, self._max_gradient_norm = input_ids_NT, max_gradient_norm

    def __call__(self) -> Tensor:
        """Run the next step and return its loss."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            loss = self._loss(self._model, self._input_ids_NT)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_gradient_norm)
        self._optimizer.step()
        return loss.detach()


def label_loss(model: Any, input_ids_NT: Tensor) -> Tensor:
    """Return the model's own next-token loss."""
    loss: Tensor = model(input_ids=input_ids_NT, labels=input_ids_NT).loss
    return loss


def head_products(model: Any, input_ids_NT: Tensor) -> Tensor:
    """Return 0, with the gradients of half the sum of squared logits: the three products that any loss needs."""
    hidden_NTD = body_of(model)(input_ids=input_ids_NT, use_cache=False).last_hidden_state
    zero: Tensor = _HeadProducts.apply(hidden_NTD.flatten(0, 1), model.get_output_embeddings().weight)  # type: ignore[no-untyped-call]
    return zero


class _HeadProducts(torch.autograd.Function):
    """Logits, and with them in place of their gradient the gradients of hidden states and weight."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, weight_VD: Tensor) -> Tensor:
        weight = weight_VD.to(hidden_PD.dtype)
        logits_PV = hidden_PD @ weight.T
        ctx.save_for_backward(logits_PV @ weight, (logits_PV.T @ hidden_PD).to(weight_VD.dtype))
        return hidden_PD.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = ctx.saved_tensors
        return gradients


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare the seconds of a step for each shape, on a CPU also beside a busy neighbour."""
    device = find_device(config.device)
    if device.type == "cpu":
        use_fast_matmul()
    for shape in shapes_of(config):
        with tempfile.TemporaryDirectory() as scratch:
            yield from _compare(shape, make_cache(Path(scratch) / "cache", shape), device, config)


def make_cache(directory: Path, shape: Shape) -> Cache:
    """Write a cache small enough that a few steps read all of it."""
    num_blocks = _NUM_SHARDS * RECORD_BATCH_ROWS
    return write_soft_targets_cache(directory, num_blocks, shape.block_size, shape.vocab_size, num_shards=_NUM_SHARDS)


def make_steps(cache: Cache, shape: Shape, device: torch.device) -> dict[str, OurStep | ReferenceStep]:
    """Return our step, those of both references on the same model, and that of a model with transformers' defaults."""
    ours = OurStep(cache, shape, device)
    learner = ours.learner
    with device:
        defaults = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape.gpt2)).train()
    reference = functools.partial(
        ReferenceStep,
        input_ids_NT=_first_input_ids(cache, shape, device),
        autocast=learner.objective.autocast(),
        max_gradient_norm=learner.config.max_gradient_norm,
    )
    return {
        _OURS: ours,
        _REFERENCE: reference(learner.parallel.model, label_loss, learner.optimizer),
        _DEFAULTS: reference(defaults, label_loss, make_optimizer(defaults, learner.config)),
        _PRODUCTS: reference(learner.parallel.model, head_products, learner.optimizer),
    }


def _compare(shape: Shape, cache: Cache, device: torch.device, config: BenchConfig) -> Iterator[Comparison]:
    steps = make_steps(cache, shape, device)
    what = f"step of {shape.batch_blocks} × {shape.block_size} tokens, {shape.preset}"
    yield from _times(steps, what, {_REFERENCE: _TARGET, _DEFAULTS: None, _PRODUCTS: None}, config)
    for neighbour in NEIGHBOURS if config.device == "cpu" else ():
        with busy_neighbour(neighbour):
            yield from _times(
                {name: steps[name] for name in (_OURS, _REFERENCE)},
                f"{what}, beside {neighbour}",
                {_REFERENCE: _BESIDE_TARGET},
                config,
            )


def _times(
    steps: dict[str, OurStep | ReferenceStep], what: str, targets: dict[str, float | None], config: BenchConfig
) -> Iterator[Comparison]:
    """Compare our step with each reference that has an entry in `targets`."""
    seconds = interleaved_seconds(steps, config.rounds, config.device)
    for reference, target in targets.items():
        yield Comparison.between(seconds, _OURS, reference, what=what, unit="s", target=target)


def _config_file(cache: Cache, shape: Shape) -> str:
    """Write the student's settings as a preset and return its path. The activation is that of our presets."""
    path = cache.path.with_name(f"{shape.preset}.json")
    path.write_text(json.dumps(shape.gpt2 | {"model_type": "gpt2", "activation_function": "gelu_pytorch_tanh"}))
    return str(path)


def _first_input_ids(cache: Cache, shape: Shape, device: torch.device) -> Tensor:
    rows = next(cache.record_batches("soft_targets", "train")).slice(0, shape.batch_blocks)
    return block_batch(rows, tail_weight=None, temperature=1.0, device=device).input_ids
