"""Several processes: torchrun --nproc-per-node 2 -m scripts.loops with_accelerate CACHE START OUT."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import send_to_device

from scripts.loops.shared import Student, num_targets_in, optimizer_and_schedule
from student import CacheDataset


def train(cache: str, start: str, out: str, max_steps: int, batch_rows: int, save_every: int) -> None:
    """Train the model in `start`; called again in any number of processes, go on after the last checkpoint."""
    accelerator = Accelerator()
    student, (rank, size) = Student(start), (accelerator.process_index, accelerator.num_processes)
    rows = CacheDataset(cache, batch_rows=batch_rows, rank=rank, world_size=size)
    optimizer, schedule = optimizer_and_schedule(student, max_steps)
    wrapped, optimizer = accelerator.prepare(student, optimizer)  # not the rows: each process reads its own
    accelerator.register_for_checkpointing(schedule, rows)
    if Path(out, "state").exists():
        accelerator.load_state(f"{out}/state")
    for step, batch in zip(range(schedule.last_epoch, max_steps), rows, strict=False):
        batch = send_to_device(batch, accelerator.device)
        num_targets = accelerator.reduce(num_targets_in(batch), "mean")
        accelerator.backward(wrapped(batch, num_targets))
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % save_every == 0 or step + 1 == max_steps:
            accelerator.save_state(f"{out}/state")
    if accelerator.is_main_process:
        student.model.save_pretrained(out)
