"""Train a teacher on blocks of tokens. A run that was killed goes on from its last checkpoint and ends the same.

The learning rate rises for WARMUP_STEPS, stays, and falls linearly to 0 over the last DECAY_SHARE of the steps. So a
run can be lengthened until its decay has begun.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.corpus.blocks import Blocks
from storage.disk.files import publishing
from storage.draws import hash_permutation
from storage.errors import ConfigError
from storage.progress import Progress
from storage.rows.segments import position_ids, valid_targets
from student.model.architecture import head_weight, hidden_states

WARMUP_STEPS = 50
DECAY_SHARE = 0.3
CHECKPOINT_NAME = "checkpoint.pt"
_CHECKPOINT_SECONDS = 120.0
_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.1


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a teacher trains, and how fast. computes_in: number format of the matrix products."""

    steps: int
    batch_blocks: int
    learning_rate: float
    computes_in: torch.dtype
    seed: int


def train_model(model: Any, blocks: Blocks, schedule: Schedule, work_dir: Path) -> None:
    """Train on the next tokens of shuffled blocks. Documents in a block cannot attend to each other.

    work_dir: where the checkpoint is kept. Raises ConfigError when the checkpoint is beyond the point at which the
    learning rate of this schedule begins to fall.
    """
    steps = schedule.steps
    optimizers = _optimizers_of(model)
    checkpoint = work_dir / CHECKPOINT_NAME
    first = _resume(checkpoint, model, optimizers, steps) if checkpoint.is_file() else 0
    saved = time.monotonic()
    with Progress(steps, "train teacher", "steps", initial=first) as bar:
        for step in range(first, steps):
            for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
                group["lr"] = schedule.learning_rate * rate_factor(step, steps)
            total, labels = loss_sum(model, blocks, _rows_of(step, len(blocks), schedule), schedule.computes_in)
            loss = total / len(labels)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            bar.update(1, loss=f"{float(loss.detach()):.3f}")
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                _save(checkpoint, model, optimizers, step + 1, steps)
                saved = time.monotonic()
    model.eval()


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step` of `steps`."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / max(1.0, DECAY_SHARE * steps))


def loss_sum(model: Any, blocks: Blocks, rows: list[int], computes_in: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the sum of the next-token losses of some blocks, in nats, and the labels: [number of targets]."""
    input_ids = np.concatenate([blocks.input_ids(row, row + 1) for row in rows]).astype(np.int64)
    lengths = [blocks.segment_lengths(row) for row in rows]
    is_valid = np.stack([valid_targets(segment_lengths) for segment_lengths in lengths])
    positions = np.stack([position_ids(segment_lengths)[:-1] for segment_lengths in lengths])
    labels = torch.from_numpy(input_ids[:, 1:][is_valid])
    with torch.autocast("cpu", torch.bfloat16, enabled=computes_in == torch.bfloat16):
        hidden = hidden_states(model, torch.from_numpy(input_ids[:, :-1].copy()), torch.from_numpy(positions))
        logits = F.linear(hidden[torch.from_numpy(is_valid)], head_weight(model))
    return F.cross_entropy(logits.float(), labels, reduction="sum"), labels


def _optimizers_of(model: Any) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, and AdamW for embeddings, norms and biases.

    Muon at AdamW's rate (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2) is 0.8 nats ahead after 100
    steps of 2,048 tokens, and takes a fifth more time.
    """
    matrices = {name for name, each in model.named_parameters() if ".h." in name and each.ndim == 2}
    by_muon = [each for name, each in model.named_parameters() if name in matrices]
    others = [each for name, each in model.named_parameters() if name not in matrices]
    return [
        torch.optim.Muon(by_muon, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, weight_decay=_WEIGHT_DECAY, betas=_BETAS, fused=True),
    ]


def _save(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], step: int, steps: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "steps": steps,
    }
    with publishing(path) as file:
        torch.save(state, cast(IO[bytes], file))


def _resume(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], steps: int) -> int:
    """Restore a checkpoint, and return the number of steps done."""
    state = torch.load(path, weights_only=True)
    step = int(state["step"])
    if any(rate_factor(done, steps) != rate_factor(done, state["steps"]) for done in range(step)):
        raise ConfigError(
            f"{path}: has done {step:,} of {state['steps']:,} steps, and another --epochs ({steps:,} steps) would have "
            "done them at other learning rates; give the --epochs of before, or more if the rate has not begun to fall"
        )
    model.load_state_dict(state["model"])
    for optimizer, of_optimizer in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(of_optimizer)
    return step


def _rows_of(step: int, num_blocks: int, schedule: Schedule) -> list[int]:
    first = step * schedule.batch_blocks
    return [
        int(_epoch_order(num_blocks, schedule.seed, i // num_blocks)[i % num_blocks])
        for i in range(first, first + schedule.batch_blocks)
    ]


@functools.lru_cache(maxsize=2)
def _epoch_order(num_blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return hash_permutation(num_blocks, seed, epoch)
