"""Lightning, on one device or several."""

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from scripts.loops.shared import Student, num_targets_in, optimizer_and_schedule
from student import CacheDataset


class Learner(pl.LightningModule):
    """A student that learns from the rows of a cache."""

    def __init__(self, student: Student, rows: CacheDataset) -> None:
        super().__init__()
        self.student, self.rows = student, rows

    def training_step(self, batch: dict[str, Tensor]) -> Any:
        return self.student(batch, self.all_gather(num_targets_in(batch)).mean())

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optimizer_and_schedule(self, self.trainer.max_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rows.load_state_dict(self.rows.state_after(checkpoint["global_step"]))


def train(cache: str, start: str, out: str, max_steps: int, batch_rows: int, save_every: int) -> None:
    """Train the model in `start`; called again, go on after the last checkpoint."""
    learner = Learner(Student(start), CacheDataset(cache, batch_rows=batch_rows))
    saving = pl.callbacks.ModelCheckpoint(out, every_n_train_steps=save_every, save_last=True)
    trainer = pl.Trainer(max_steps=max_steps, gradient_clip_val=1.0, callbacks=[saving], default_root_dir=out)
    trainer.fit(learner, DataLoader(learner.rows, batch_size=None), ckpt_path="last")
    if trainer.is_global_zero:
        learner.student.model.save_pretrained(out)
