"""TRL's SFTTrainer with the loss and the rows of a cache in place of its own."""

from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from scripts.loops.shared import last_checkpoint, num_targets_in, optimizer_and_schedule
from student import CacheDataset, distillation_loss_from_logits


class Learner(SFTTrainer):
    """SFTTrainer that learns from the rows of a cache."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=None)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], **_: Any) -> Tensor:
        logits = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
        num_targets = self.accelerator.reduce(num_targets_in(inputs), "mean")
        return distillation_loss_from_logits(logits, inputs, label_weight=0.1, num_targets=num_targets)


def train(cache: str, start: str, out: str, max_steps: int, batch_rows: int, save_every: int) -> None:
    """Train the model in `start`; called again, go on after the last checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(f"{cache}/tokenizer")
    args = SFTConfig(out, max_steps=max_steps, save_steps=save_every, bf16=False)
    asked_for = datasets.load_dataset(cache, "soft_targets", split="train", streaming=True)  # is not read
    optimizers = optimizer_and_schedule(model, max_steps)
    learner = Learner(model, args, None, asked_for, processing_class=tokenizer, optimizers=optimizers)
    learner.rows = CacheDataset(cache, batch_rows=batch_rows, rank=args.process_index, world_size=args.world_size)
    learner.train(resume_from_checkpoint=last_checkpoint(out))
    learner.save_model(out)
