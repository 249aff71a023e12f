"""The report from end to end, without a browser."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from storage import Cache
from student.cli import main
from student.config import ReportConfig
from student.model.loading import load_student
from student.report.whole import report_page
from student.training.run_log import read_metrics
from tests.storage.pages.test_page import check_page
from tests.student.report.measures import made_up_measures
from tests.student.report.test_runs import make_run

HOSTILE = '"><script>alert("x")</script>\x1b]0;\u202e'


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run teachonce-student report in this process."""

    def run_main(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["teachonce-student", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(code=stopped.value.code, out=captured.out, err=captured.err.splitlines())

    return run_main


def test_a_report_of_two_students(
    run: Callable[..., SimpleNamespace], cache: Cache, student_dirs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    done = run(*student_dirs, "--cache", cache.path, "--out", out, "--num-prompts", 3, "--quiet")
    assert (done.code, done.err) == (0, [])
    assert str(out) in done.out
    content = out.read_bytes()
    check_page(content)
    assert len(content) < 1 << 20
    text = content.decode()
    for key in ("figures", "divergence", "calibration", "passage", "candidates", "texts", "training", "cost"):
        assert f'<section id="{key}"' in text
    assert "Compared with plain" in text
    assert f"teachonce-student train {cache.path} --out {student_dirs[0]} --preset" in text
    assert "Trained on other rows" not in text
    for directory in student_dirs:
        assert f"<td>{read_metrics(directory)[-1]['tokens_seen']:,}</td>" in text


def test_the_same_figures_give_the_same_bytes(
    report_config: ReportConfig, cache: Cache, student_dirs: list[Path]
) -> None:
    runs = [make_run(name=name, measures=made_up_measures()) for name in ("a", "b")]
    models = [load_student(directory).eval() for directory in student_dirs]
    pages = [
        report_page(report_config, cache, runs, models, lambda before, ids: str(ids), "a machine") for _ in range(2)
    ]
    assert pages[0] == pages[1]
    check_page(pages[0])
    assert f"{made_up_measures()['kl_by_position'][0]['kl_nats']:.5g}" in pages[0].decode()


def test_what_a_stranger_wrote_is_text(report_config: ReportConfig, cache: Cache, student_dirs: list[Path]) -> None:
    settings = {"preset": HOSTILE, HOSTILE: [HOSTILE], "mix": HOSTILE, "cache_sha256": HOSTILE}
    metrics = [{"step": 10, f"{HOSTILE}_nats": 1.0, "validation": {"kl_nats": 0.5}}]
    hostile = make_run(
        name=HOSTILE, directory=Path(HOSTILE), settings=settings, metrics=metrics, measures=made_up_measures()
    )
    teacher = cache.identity.teacher | {"id": HOSTILE, "weights_sha256": HOSTILE}
    identity = dataclasses.replace(cache.identity, teacher=teacher, data=cache.identity.data | {"source": HOSTILE})
    stranger = dataclasses.replace(cache, manifest=dataclasses.replace(cache.manifest, identity=identity))
    config = dataclasses.replace(report_config, cache=HOSTILE)
    content = report_page(
        config, stranger, [hostile], [load_student(student_dirs[0])], lambda before, ids: HOSTILE, HOSTILE
    )
    check_page(content)
    text = content.decode()
    assert "<script" not in text
    assert "\x1b" not in text
    assert text.count("alert(") > 30


def test_a_model_without_log_and_settings(
    run: Callable[..., SimpleNamespace], cache: Cache, student_dirs: list[Path], tmp_path: Path
) -> None:
    bare = shutil.copytree(student_dirs[0], tmp_path / "bare")
    (bare / "run.json").unlink()
    (bare / "metrics.jsonl").unlink()
    out = tmp_path / "report.html"
    done = run(bare, "--cache", cache.path, "--out", out, "--num-prompts", 0, "--quiet")
    assert (done.code, done.err) == (0, [])
    check_page(out.read_bytes())
    assert "bare has no run.json" in out.read_text()
    assert '<section id="training"' not in out.read_text()


@pytest.mark.parametrize(
    "changes",
    [{"kinds": ("soft_targets",)}, {"kinds": ("samples",)}, {"kinds": ("beams",)}],
)
def test_a_cache_without_some_held_out_rows(
    run: Callable[..., SimpleNamespace],
    make_cache: Callable[..., Cache],
    student_dirs: list[Path],
    tmp_path: Path,
    changes: dict[str, object],
) -> None:
    out = tmp_path / "report.html"
    held = make_cache(**changes)
    done = run(student_dirs[0], "--cache", held.path, "--out", out, "--num-prompts", 2, "--quiet")
    assert (done.code, done.err) == (0, [])
    check_page(out.read_bytes())
    text = out.read_text()
    assert "Trained on other rows than this cache" in text
    assert "teachonce-student train" not in text


def test_wrong_input_is_one_line_and_leaves_no_page(
    run: Callable[..., SimpleNamespace],
    cache: Cache,
    make_cache: Callable[..., Cache],
    student_dirs: list[Path],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    out = tmp_path / "report.html"
    damaged = shutil.copytree(student_dirs[0], tmp_path / "damaged")
    (damaged / "run.json").write_text("{")
    student = student_dirs[0]
    for arguments, said in (
        ([tmp_path / "nowhere", "--cache", cache.path, "--out", out], "no student can be loaded"),
        ([student, "--cache", tmp_path / "nowhere", "--out", out], "no cache here"),
        (
            [student, "--cache", make_cache(validation_fraction=0.0).path, "--out", out],
            "validation split holds no rows",
        ),
        ([student, "--cache", cache.path, "--out", tmp_path], "is a directory"),
        ([damaged, "--cache", cache.path, "--out", out], "run.json"),
        ([student, "--cache", cache.path, "--out", out, "--device", "nonsense"], "--device nonsense"),
    ):
        done = run(*arguments, "--quiet")
        assert (done.code, done.out, len(done.err)) == (2, "", 1), said
        assert said in done.err[0]
        assert not out.exists()
    assert run(student, student, "--cache", cache.path, "--out", out).code == 2
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run(student, "--cache", cache.path, "--out", out)
    assert (done.code, len(done.err)) == (2, 1)
    assert "[report]" in done.err[0]


def test_the_report_does_not_change_what_it_reads(
    run: Callable[..., SimpleNamespace], cache: Cache, student_dirs: list[Path], tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for d in student_dirs for path in d.iterdir()}
    torch.manual_seed(3)
    run(*student_dirs, "--cache", cache.path, "--out", tmp_path / "r.html", "--num-prompts", 0, "--quiet")
    assert {path: path.read_bytes() for d in student_dirs for path in d.iterdir()} == before


def test_every_student_is_loaded_once(
    run: Callable[..., SimpleNamespace],
    cache: Cache,
    student_dirs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = []
    original = AutoModelForCausalLM.from_pretrained

    def load(directory: str, **settings: Any) -> Any:
        loaded.append(Path(directory))
        return original(directory, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    done = run(*student_dirs, "--cache", cache.path, "--out", tmp_path / "r.html", "--num-prompts", 0, "--quiet")
    assert (done.code, loaded) == (0, student_dirs)
