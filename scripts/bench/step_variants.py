"""Training steps that the benchmark of the step compares: ours, and references on labels or on nothing.

    python -m scripts.bench.step_variants NAME CACHE SHAPE THREADS

runs the variant NAME on a CPU, in a process of its own: a step for each line on standard input.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.autograd.function import once_differentiable

from scripts.bench.config import BenchConfig
from scripts.support.caches import RECORD_BATCH_ROWS, write_soft_targets_cache
from scripts.support.child import Child, serve, stdout_for_answers
from storage.reading.cache import Cache, open_cache
from storage.reading.row_stream import RowStream
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.model_facts import body_of
from student.config import TrainConfig
from student.losses.batches import block_batch
from student.model.device import choose_device
from student.model.presets import PRESETS
from student.training.learner import Learner, make_learner
from student.training.schedule import make_optimizer

OURS, REFERENCE, DEFAULTS = "cached targets", "labels alone", "labels alone, transformers' defaults"
PRODUCTS = "a loss that costs nothing"
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
    """Return 0, with gradients of no meaning that take the products of any loss: a step cannot have fewer."""
    hidden_NTD = body_of(model)(input_ids=input_ids_NT, use_cache=False).last_hidden_state
    zero: Tensor = _HeadProducts.apply(hidden_NTD.flatten(0, 1), model.get_output_embeddings().weight)  # type: ignore[no-untyped-call]
    return zero


Step = OurStep | ReferenceStep


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


def make_cache(directory: Path, shape: Shape) -> Cache:
    """Write a cache small enough that a few steps read all of it."""
    num_blocks = _NUM_SHARDS * RECORD_BATCH_ROWS
    return write_soft_targets_cache(directory, num_blocks, shape.block_size, shape.vocab_size, num_shards=_NUM_SHARDS)


def make_step(name: str, ours: OurStep, cache: Cache, shape: Shape, device: torch.device) -> Step:
    """Return the step `name`. Those of REFERENCE and PRODUCTS train the model of `ours`, with its optimiser."""
    if name == OURS:
        return ours
    learner = ours.learner
    model, optimizer = learner.parallel.model, learner.optimizer
    if name == DEFAULTS:
        with device:
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape.gpt2)).train()
        optimizer = make_optimizer(model, learner.config)
    return ReferenceStep(
        model,
        head_products if name == PRODUCTS else label_loss,
        optimizer,
        _first_input_ids(cache, shape, device),
        learner.objective.autocast(),
        learner.config.max_gradient_norm,
    )


class StepProcess(Child):
    """A process that runs the steps of one variant on a CPU until `close` is called."""

    def __init__(self, name: str, cache: Cache, shape: Shape, work_dir: Path) -> None:
        arguments = name, str(cache.path), json.dumps(asdict(shape)), str(torch.get_num_threads())
        super().__init__(sys.executable, "scripts.bench.step_variants", arguments, work_dir, {})


def _config_file(cache: Cache, shape: Shape) -> str:
    """Write the student's settings as a preset and return its path. The activation is that of our presets."""
    path = cache.path.with_name(f"{shape.preset}.json")
    path.write_text(json.dumps(shape.gpt2 | {"model_type": "gpt2", "activation_function": "gelu_pytorch_tanh"}))
    return str(path)


def _first_input_ids(cache: Cache, shape: Shape, device: torch.device) -> Tensor:
    rows = next(cache.record_batches("soft_targets", "train")).slice(0, shape.batch_blocks)
    return block_batch(rows, tail_weight=None, temperature=1.0, device=device).input_ids


def main() -> None:
    """Run a step for each request. Our process is set up as the trainer's, the references' keep no freed memory."""
    name, directory, shape_json, num_threads = sys.argv[1:]
    answers = stdout_for_answers()
    torch.set_num_threads(int(num_threads))
    shape, cache = Shape(**json.loads(shape_json)), open_cache(directory)
    if name in (OURS, PRODUCTS):
        choose_device("cpu")
    else:
        use_fast_matmul()
    device = torch.device("cpu")
    step = make_step(name, OurStep(cache, shape, device), cache, shape, device)

    def answer() -> dict[str, Any]:
        step()
        return {}

    serve(answers, answer)


if __name__ == "__main__":
    main()
