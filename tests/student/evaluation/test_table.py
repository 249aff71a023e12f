"""The table that `teachonce-student evaluate` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import Cache
from student import EvaluateConfig, evaluate
from student.cli import main
from student.evaluation.table import render


@pytest.fixture
def student_dir(make_student: Callable[..., Any], tmp_path: Path) -> Path:
    make_student().save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def lines_of(found: dict[str, Any]) -> dict[str, str]:
    """What follows each label."""
    return {line[:28].strip(): line[28:] for line in render(found).splitlines()}


def test_every_figure_stands_in_its_line_with_its_interval(cache: Cache, student_dir: Path) -> None:
    found = evaluate(EvaluateConfig(student=student_dir, cache=cache.path, device="cpu", quiet=True))
    lines = lines_of(found)
    student, teacher = (
        "{:.2f} [{:.2f}, {:.2f}]".format(found[name], *found[f"{name}_interval"])
        for name in ("perplexity", "teacher_perplexity")
    )
    assert lines["perplexity"] == f"{student:<30}{teacher}"
    assert f"{found['kl_nats']:.4f}" in lines["KL from the teacher, nats"]
    assert lines["best one chosen"].endswith("by chance 0.250")
    for side in ("student", "teacher"):
        assert f"{found['generation'][side]['self_bleu']:.4f}" in lines["self-BLEU"]
        assert f"{found['calibration'][side]['expected_calibration_error']:.4f}" in lines["expected error"]
    assert {"0", "1", "2 to 3", "4 to 7", "8 to 15", "16 to 31"} <= set(lines)
    assert "lower bound" not in render(found)
    assert all(line == line.rstrip() for line in render(found).splitlines())
    assert max(map(len, render(found).splitlines())) <= 110


def test_a_lower_bound_is_called_one(bucketed_cache: Cache, student_dir: Path) -> None:
    found = evaluate(EvaluateConfig(student=student_dir, cache=bucketed_cache.path, device="cpu", quiet=True))
    assert "KL is a lower bound" in render(found)


@pytest.mark.parametrize(
    ("kind", "heading"), [("soft_targets", "Next token"), ("samples", "Texts"), ("beams", "Ranking")]
)
def test_a_cache_of_one_kind_has_only_its_groups(
    make_cache: Callable[..., Cache], student_dir: Path, kind: str, heading: str
) -> None:
    cache = make_cache(kinds=(kind,))
    text = render(evaluate(EvaluateConfig(student=student_dir, cache=cache.path, device="cpu", quiet=True)))
    headings = [
        line.split()[0].strip(",") for line in text.splitlines()[2:] if line and not line.startswith((" ", "["))
    ]
    assert heading.split()[0] in headings
    assert len(headings) == {"soft_targets": 4, "samples": 2, "beams": 1}[kind]
    assert "None" not in text
    assert "nan" not in text


def test_without_heads_agreement_is_a_dash(make_cache: Callable[..., Cache], student_dir: Path, helpers: Any) -> None:
    soft_targets = helpers.SoftTargetsConfig(top_k=0, tail_weight=0.9)
    cache = make_cache(kinds=("soft_targets",), soft_targets=soft_targets)
    lines = lines_of(evaluate(EvaluateConfig(student=student_dir, cache=cache.path, device="cpu", quiet=True)))
    assert lines["top-1 agreement"] == lines["top-5 agreement"] == "–"
    assert lines["expected error"].endswith("  –")


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["teachonce-student", "evaluate", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_the_command_prints_the_table_or_one_json_document(
    cache: Cache, student_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(student_dir), "--cache", str(cache.path), "--device", "cpu", "--num-prompts", "2")
    assert run_command(monkeypatch, *arguments) == 0
    table = capsys.readouterr().out
    assert run_command(monkeypatch, *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert table == render(found) + "\n"
    assert found["generation"]["student"]["num_texts"] == 4


def test_a_number_of_prompts_below_0_is_one_line(
    student_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, str(student_dir), "--cache", "nowhere", "--num-prompts", "-1") == 2
    assert "--num-prompts is -1, expected 0 or more" in " ".join(capsys.readouterr().err.split())
