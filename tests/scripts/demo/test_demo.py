"""The demo runs from a text to a page on a teacher that is named, and says of each stage what is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.demo import stages
from scripts.demo.demo import DemoConfig, run_demo
from scripts.demo.sides import Side
from scripts.demo.stages import Stages
from storage.errors import ConfigError
from tests.places import ROOT


@pytest.fixture(scope="module")
def config(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    directory = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 257, "n_positions": 160, "n_embd": 32, "n_layer": 3, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=256)).save_pretrained(directory / "teacher")
    helpers.make_tokenizer(directory / "teacher", eos_token=helpers.EOS)
    lines = [json.dumps({"text": text}) for text in helpers.make_text(40)]
    (directory / "text.jsonl").write_text("\n".join(lines))
    return DemoConfig(
        out=directory / "out", teacher=str(directory / "teacher"), data=str(directory / "text.jsonl"),
        max_tokens=4000, layers="1", steps=2,
    )  # fmt: skip


def test_the_whole_way_and_a_rerun(
    config: DemoConfig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_demo(config) == 0
    printed, told = capfd.readouterr()
    results = json.loads((config.out / "results.json").read_text())
    assert list(results) == ["teacher", "student", "ce_only", "cut"]
    wanted = {"num_parameters", "perplexity", "kl_nats", "top1_agreement", "selection_accuracy"}
    assert all(wanted <= figures.keys() for figures in results.values())
    assert len({results[name]["num_parameters"] for name in ("student", "ce_only", "cut")}) == 1
    assert printed.count("prompt   ") >= 1
    assert "[1/8]" in told
    assert "[8/8] the page is written (about" in told
    assert (config.out / "report.html").stat().st_size > 10_000
    written = (config.out / "cut" / "model.safetensors").stat().st_mtime_ns
    assert run_demo(config) == 0
    assert "teachonce-precompute" not in capfd.readouterr().err
    assert (config.out / "cut" / "model.safetensors").stat().st_mtime_ns == written


def test_another_demo_is_not_mixed_with_this_one(config: DemoConfig, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"steps": 3, "preset": "mini"}))
    with pytest.raises(ConfigError, match="another version of the demo"):
        run_demo(DemoConfig(out=tmp_path, teacher=config.teacher))
    facts = {
        "teacher": None,
        "data": None,
        "max_tokens": 250_000,
        "layers": "3",
        "keep_mlp": 0.5,
        "steps": 3,
        "seed": 0,
    }
    (tmp_path / "demo.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"made with --steps 3, not \d+; use another --out"):
        run_demo(DemoConfig(out=tmp_path))


def test_a_side_returns_what_a_command_prints_and_ends_with_its_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with Side() as side:
        assert "verify" in side.run("teachonce-cache", "--help")
        with pytest.raises(SystemExit) as end:
            side.run("teachonce-cache", "inspect", str(tmp_path / "none"))
    assert end.value.code == 2
    told = capfd.readouterr().err
    assert "teachonce-cache: error: " in told
    assert "finished stages are kept" in told


def test_the_students_side_imports_nothing_of_the_teachers() -> None:
    code = "import sys, student.cli, student.training.trainer, student.report.whole; print('pipeline' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_is_left_follows_from_what_was_taken(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 26.0, 32.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    run = Stages({"one": 10, "two": 5, "three": 15})
    for title in ("one", "two", "three"):
        run.begin(title)
    told = capfd.readouterr().err.splitlines()
    assert told == ["", "[1/3] one", "", "[2/3] two (about 40 seconds left)", "", "[3/3] three (about 26 seconds left)"]
    assert run.taken() == {"one": 20.0, "two": 6.0, "three": 6.0}
    with pytest.raises(IndexError):
        run.begin("four")


def test_stages_come_in_order() -> None:
    with pytest.raises(ValueError, match="stage 'two', expected 'one'"):
        Stages({"one": 1, "two": 1}).begin("two")
