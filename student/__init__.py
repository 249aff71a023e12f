"""The student trainer: trains a small model from a cache, without the teacher."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from student.config import EvaluateConfig, MixConfig, TrainConfig
from student.export.config import ExportConfig

if TYPE_CHECKING:
    from student.export.trial import Trial
    from student.generation.generator import Generator
    from student.loops.dataset import CacheDataset
    from student.loops.loss import distillation_loss, distillation_loss_from_logits
    from student.loops.trainer import DistillationTrainer
    from student.model.architecture import hidden_states

__all__ = [
    "CacheDataset",
    "DistillationTrainer",
    "EvaluateConfig",
    "ExportConfig",
    "Generator",
    "MixConfig",
    "TrainConfig",
    "distillation_loss",
    "distillation_loss_from_logits",
    "evaluate",
    "export_student",
    "hidden_states",
    "train",
]

# The modules of these names import torch.
_LAZY = {
    "CacheDataset": "student.loops.dataset",
    "DistillationTrainer": "student.loops.trainer",
    "Generator": "student.generation.generator",
    "distillation_loss": "student.loops.loss",
    "distillation_loss_from_logits": "student.loops.loss",
    "hidden_states": "student.model.architecture",
}


def train(config: TrainConfig) -> Path:
    """Train to the last step and return the student's directory; a rerun resumes (see student.training.trainer)."""
    from student.training.trainer import train as run

    return run(config)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a student on the validation split (see student.evaluation)."""
    from student.evaluation import evaluate as run

    return run(config)


def export_student(config: ExportConfig) -> Trial:
    """Write a student for another runtime; keep the files only if they agree with it (see student.export.command)."""
    from student.export.command import export_student as run

    return run(config)


def __getattr__(name: str) -> Any:
    """Import a name of _LAZY at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
