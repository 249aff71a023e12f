"""What the recipes share: a model with its loss, and the optimizer and learning rates of `teachonce-student train`."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM
from transformers.trainer_utils import get_last_checkpoint

from student import distillation_loss, hidden_states


class Student(torch.nn.Module):
    """A model and its loss in one forward pass, which DDP and FSDP can wrap."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.model: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).train()

    def forward(self, batch: dict[str, Tensor], num_targets: Tensor) -> Tensor:
        """Return the loss of a batch in nats: the sum over its wanted targets, divided by num_targets."""
        hidden = hidden_states(self.model, batch["input_ids"], batch["position_ids"])
        head = self.model.get_output_embeddings().weight
        return distillation_loss(hidden, head, batch, label_weight=0.1, num_targets=num_targets)


def num_targets_in(batch: dict[str, Tensor]) -> Tensor:
    """Return the number of wanted targets of a batch, to be averaged over processes."""
    return (batch["labels"] != -100).sum().float()


def optimizer_and_schedule(model: torch.nn.Module, max_steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return AdamW with weight decay on matrices, and a warm-up and then a cosine to a tenth of the peak."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer, warmup = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95)), max(1, round(0.05 * max_steps))

    def share_of_peak(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, max_steps - warmup)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))

    return optimizer, LambdaLR(optimizer, share_of_peak)


def last_checkpoint(out: str) -> str | None:
    """Return the last checkpoint of a Trainer in a directory that may not be there yet."""
    found: str | None = get_last_checkpoint(out) if Path(out).is_dir() else None
    return found
