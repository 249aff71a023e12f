"""Learning rate and parameter groups.

transformers has a cosine schedule with a floor. With the same warm-up, its cosine is one step ahead of this one, so
trained weights would differ.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from student.config import TrainConfig

_FINAL_SHARE = 0.1
_WARMUP_SHARE = 0.05


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step 0, 1, …: linear warm-up, then a cosine from the peak to a tenth of it."""
    warmup = config.warmup_steps
    if warmup is None:
        warmup = max(1, round(_WARMUP_SHARE * config.max_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.max_steps - warmup)
    return config.learning_rate * (_FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) of what is trained, with weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
