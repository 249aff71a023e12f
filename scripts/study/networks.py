"""The networks of the study: shapes and training settings, the teacher's training, and forward passes in parts.

Shape legend: P positions, C positions of a chunk, V vocabulary, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.study.text import batch_indices
from scripts.support.teachers import LABELS_ONLY, new_gpt2
from storage.progress import Progress
from storage.tensors.output_head import OutputHead
from student.losses.fused_head import fused_head_loss
from student.losses.targets import SparseTargets


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Shape and training of the teacher."""

    layers: int = 12
    width: int = 768
    steps: int = 3000
    batch_blocks: int = 128
    learning_rate: float = 6e-4


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape and training of the students."""

    layers: int = 4
    width: int = 256
    steps: int = 800
    batch_blocks: int = 64
    learning_rate: float = 1e-3
    beta2: float = 0.95
    warmup_share: float = 0.05


def train_teacher(config: TeacherConfig, path: Path, blocks: Tensor, vocab_size: int, device: torch.device) -> Any:
    """Return the teacher saved at `path`. Train and save it first if the file does not exist."""
    model = new_model(config, vocab_size, blocks.shape[1] - 1, 0, device)
    if path.is_file():
        model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        return model.eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    with Progress(config.steps, "teacher", "steps") as bar:
        batches = batch_indices(len(blocks), config.batch_blocks, seed=100, steps=config.steps)
        for step, batch in enumerate(batches):
            set_rate(optimizer, step, config.steps, config.learning_rate)
            ids = blocks[batch].to(device)
            with autocast(device):
                hidden = model.base_model(ids[:, :-1]).last_hidden_state.flatten(0, 1)
                targets = SparseTargets.labels_only(ids[:, 1:].reshape(-1))
                loss = fused_head_loss(hidden, OutputHead(weight_VD=model.lm_head.weight), targets, LABELS_ONLY)[
                    0
                ] / len(hidden)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update(1)
    torch.save(model.state_dict(), path)
    return model.eval()


def chunk_positions(vocab_size: int, device: torch.device) -> int:
    """Return the number of positions whose logits are held in memory at once."""
    return 4096 if device.type == "cuda" else max(32, (1 << 20) // vocab_size)


@torch.no_grad()
def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """Return the last hidden states [P, D]."""
    with autocast(input_ids.device):
        hidden: Tensor = model.base_model(input_ids).last_hidden_state.flatten(0, 1)
    return hidden


@torch.no_grad()
def logprobs(model: Any, hidden_CD: Tensor) -> Tensor:
    """Return log-probabilities [C, V] in float32."""
    return torch.log_softmax(logits(hidden_CD, model.lm_head.weight), dim=1)


def logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """Return logits [C, V] in float32, on a GPU from a product in bfloat16."""
    if hidden_CD.is_cuda:
        return (hidden_CD.bfloat16() @ weight_VD.bfloat16().T).float()
    return hidden_CD @ weight_VD.T


def autocast(device: torch.device) -> torch.autocast:
    """Return a context of bfloat16 arithmetic on a GPU, and of float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def new_model(
    config: TeacherConfig | StudentConfig, vocab_size: int, block_size: int, seed: int, device: torch.device
) -> Any:
    """Return a new model of a teacher's or a student's shape, initialised from `seed`."""
    return new_gpt2(
        vocab_size=vocab_size, layers=config.layers, width=config.width, heads=config.width // 64,
        context=block_size, eos_token_id=0, seed=seed, device=device.type,
    )  # fmt: skip


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float, warmup_share: float = 0.05) -> None:
    """Set the learning rate: linear warm-up over a share of the steps, then a cosine to a tenth of the peak."""
    warmup = max(1, int(steps * warmup_share))
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = peak * ((step + 1) / warmup if step < warmup else cosine)
