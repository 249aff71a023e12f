"""The study of beginnings makes students as it says, and a tiny one runs from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cutting.importance import Importance
from scripts.study.beginnings import report
from scripts.study.beginnings.models import Beginnings
from scripts.study.beginnings.runs import run_study
from scripts.study.beginnings.sizes import Size, runs_of
from scripts.study.networks import StudentConfig, TeacherConfig, new_model

VOCAB = 300
SIZE = Size(
    vocab_size=VOCAB,
    max_megabytes=1,
    teacher=TeacherConfig(layers=3, width=64, steps=2, batch_blocks=4),
    student=StudentConfig(layers=2, width=64, steps=3, batch_blocks=2),
    seeds=(0,),
    shapes=("fresh 1x64", "layers 1", "even, mlp 50 %"),
    block_size=16,
    num_held_out=4,
)


def test_layers_are_those_at_equal_distances_or_the_most_important() -> None:
    teacher = new_model(SIZE.teacher, VOCAB, SIZE.block_size, 0, torch.device("cpu")).eval()
    beginnings = Beginnings(size=SIZE, teacher=teacher, importance=Importance(layers=(0.1, 0.5, 0.3)))
    assert beginnings.layers == {"even": (0, 2), "importance": (1, 2)}
    ids = torch.arange(8)[None]
    cut = beginnings.model("layers 0 1 2", seed=0).eval()
    assert torch.equal(cut(ids).logits, teacher(ids).logits)
    assert cut.lm_head.weight is cut.get_input_embeddings().weight
    assert cut.lm_head.weight is not teacher.lm_head.weight
    assert beginnings.model("fresh 3x128", seed=0).config.n_embd == 128
    assert beginnings.model("fresh", seed=0).num_parameters() == beginnings.model("even", seed=0).num_parameters()


def test_a_tiny_study_writes_its_results_goes_on_and_shows_them(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCAB, 200 * 17, dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    (tmp_path / "text.json").write_text(json.dumps({"vocab_size": VOCAB}))
    tables = ("targets", "shapes")
    expected = [run for run in runs_of(SIZE) if run.table in tables]
    run_study(SIZE, tmp_path, tables)
    found = report.read_results(tmp_path)
    assert len(found["runs"]) == len(expected) == 4
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    run_study(SIZE, tmp_path, tables)  # every run is there
    assert report.read_results(tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")} == written
    shown = report.tables(found)
    assert all(f"### {run.table}: {run.steps} steps" in shown for run in expected)
    assert "| full | entropy 20 % |" in shown


def test_a_row_compares_students_of_a_seed_with_those_at_all_positions(tmp_path: Path) -> None:
    def student(positions: str, kl_nats: float) -> dict[str, object]:
        identity = {"beginning": "even", "targets": "full", "positions": positions, "learning_rate": 1e-3}
        measures = {
            "num_parameters": 7,
            "kl_nats": kl_nats,
            "perplexity": 9.0,
            "acceptance": 0.5,
            "cpu_seconds_per_step": 0.1,
        }
        return identity | {"warmup_share": 0.05} | measures

    runs = [
        {"table": "targets", "seed": seed, "steps": 5, "num_blocks": None, "students": [student(positions, kl_nats)]}
        for seed, positions, kl_nats in (
            (0, "all", 1.0),
            (1, "all", 2.0),
            (0, "random 20 %", 1.1),
            (1, "random 20 %", 2.4),
        )
    ]
    facts = {"teacher": {"perplexity": 7.0, "entropy_nats": 2.0}, "importance": [0.1], "layers": {}}
    above, _, heads, _, *rows = report.tables(facts | {"runs": runs}).splitlines()[-6:]
    assert above.startswith("begins even, parameters 0.00 M, targets full, rate 0.001, warm-up 0.05, seeds 2, perp")
    assert heads == "| positions | KL nats/token | spread | to all, full | its spread |"
    assert rows == ["| all | 1.5000 | 0.5000 | +0.0% | 0.0% |", "| random 20 % | 1.7500 | 0.6500 | +15.0% | 5.0% |"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_every_run_has_a_file_of_its_own(seeds: tuple[int, ...]) -> None:
    size = replace(SIZE, seeds=seeds)
    files = [(run.name, run.seed) for run in runs_of(size)]
    assert len(set(files)) == len(files)
