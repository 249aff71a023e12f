"""Train the groups of students of the study of beginnings. Each leaves one file, and a rerun continues."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.study import text
from scripts.study.beginnings.models import Beginnings
from scripts.study.beginnings.sizes import Run, Size, runs_of
from scripts.study.measures import evaluate_models
from scripts.study.positions import position_choice
from scripts.study.schemes import Scheme, all_schemes, with_labels
from scripts.study.sharing import claimed, shared_teacher
from scripts.study.students import Student, train_in_lockstep
from storage.tensors.matmul_precision import use_fast_matmul


def run_study(size: Size, out: Path, only: tuple[str, ...] = ()) -> None:
    """Train every run of `size` that has no file in OUT/runs yet, or those of the tables `only`. Write OUT/facts.json.

    Several processes may share an OUT. Each locks the runs that it trains.
    """
    use_fast_matmul()
    train, held_out = text.read_blocks(out, size.block_size)
    held_out = held_out[: size.num_held_out]
    teacher = shared_teacher(size.teacher, out, train, torch.device("cpu"))
    beginnings = Beginnings.of(size, teacher, train)
    about = {
        "text": text.read_facts(out),
        "teacher_config": asdict(size.teacher),
        "teacher": evaluate_models({"teacher": teacher}, teacher, held_out)["teacher"],
        "importance": beginnings.importance.layers,
        "layers": beginnings.layers,
    }
    (out / "facts.json").write_text(json.dumps(about, indent=1))
    (out / "runs").mkdir(exist_ok=True)
    for run in runs_of(size):
        if only and run.table not in only:
            continue
        with claimed(out / "runs" / f"{run.name}-{run.seed}.json") as path:
            if path:
                path.write_text(json.dumps(_trained(run, beginnings, train, held_out), indent=1))


def _trained(run: Run, beginnings: Beginnings, train: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Return the settings of a run and the measures of its students."""
    shared = run.config(beginnings.size.student)
    students = [
        Student(
            _scheme(arm.targets),
            arm.config(shared),
            beginnings.model(arm.beginning, run.seed),
            position_choice(arm.positions),
        )
        for arm in run.arms
    ]
    train_in_lockstep(students, beginnings.teacher, train[: run.num_blocks], run.seed, run.name)
    models = {str(place): student.model for place, student in enumerate(students)}
    measures = evaluate_models(models, beginnings.teacher, held_out)
    rows = [
        asdict(arm)
        | {
            "learning_rate": student.config.learning_rate,
            "num_parameters": student.model.num_parameters(),
            "cpu_seconds_per_step": student.cpu_seconds / run.steps,
        }
        | found
        for arm, student, found in zip(run.arms, students, measures.values(), strict=True)
    ]
    return {"table": run.table, "seed": run.seed, "steps": run.steps, "num_blocks": run.num_blocks, "students": rows}


def _scheme(name: str) -> Scheme:
    """Return the scheme of a name: one of all_schemes, or one with labels as in 'full + 0.1 ce'."""
    scheme, _, labels = name.partition(" + ")
    found = next(known for known in all_schemes() if known.name == scheme)
    return with_labels(found, float(labels.removesuffix(" ce"))) if labels else found
