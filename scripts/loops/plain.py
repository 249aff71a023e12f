"""A loop of your own, on one device."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from scripts.loops.shared import optimizer_and_schedule
from student import CacheDataset, distillation_loss, hidden_states


def train(cache: str, start: str, out: str, max_steps: int, batch_rows: int, save_every: int) -> None:
    """Train the model in `start` on a cache; called again, go on after the last checkpoint."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).to(device).train()
    rows = CacheDataset(cache, batch_rows=batch_rows)
    optimizer, schedule = optimizer_and_schedule(model, max_steps)
    parts, checkpoint = [model, optimizer, schedule, rows], Path(out, "checkpoint.pt")
    if checkpoint.exists():
        for part, state in zip(parts, torch.load(checkpoint), strict=True):
            part.load_state_dict(state)
    for step, batch in zip(range(schedule.last_epoch, max_steps), rows, strict=False):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        hidden = hidden_states(model, batch["input_ids"], batch["position_ids"])
        distillation_loss(hidden, model.get_output_embeddings().weight, batch, label_weight=0.1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % save_every == 0 or step + 1 == max_steps:
            model.save_pretrained(out)
            torch.save([part.state_dict() for part in parts], checkpoint)
