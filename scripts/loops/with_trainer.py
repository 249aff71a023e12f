"""The Trainer of transformers, with all that it can do beside."""

import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from scripts.loops.shared import last_checkpoint, optimizer_and_schedule
from student import CacheDataset, DistillationTrainer


def train(cache: str, start: str, out: str, max_steps: int, batch_rows: int, save_every: int) -> None:
    """Train the model in `start`; called again, go on after the last checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    args = TrainingArguments(out, max_steps=max_steps, save_steps=save_every)
    rows = CacheDataset(cache, batch_rows=batch_rows, rank=args.process_index, world_size=args.world_size)
    optimizers = optimizer_and_schedule(model, max_steps)
    trainer = DistillationTrainer(model, args, train_dataset=rows, label_weight=0.1, optimizers=optimizers)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    trainer.save_model(out)
