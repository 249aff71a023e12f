"""teachonce-precompute before it does anything: light imports, one line for a wrong flag."""

from __future__ import annotations

from pathlib import Path

import pytest
import tyro

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig
from storage.errors import ConfigError
from tests.commands import python, refused
from tests.places import ROOT

HEAVY = ("torch", "transformers", "datasets", "pyarrow.dataset")


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline"])
def test_importing_a_command_loads_nothing_heavy(module: str) -> None:
    done = python(f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_help_answers_without_anything_heavy() -> None:
    code = (
        "import sys, pipeline.cli\n"
        "try: pipeline.cli.main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = python(code, "--help")
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    for flag in ("--teacher", "--soft-targets.tail-weight", "--samples.top-p", "--beams.num-beams", "--plan"):
        assert flag in done.stdout


PRECOMPUTE = ["--teacher", "t", "--data", "d", "--out", "o"]


@pytest.mark.parametrize(
    ("words", "plan"),
    [([], None), (["--plan"], "sample"), (["--plan", "exact"], "exact"), (["--plan", "--quiet"], "sample")],
)
def test_the_value_of_plan_may_be_left_out(words: list[str], plan: str | None) -> None:
    assert tyro.cli(PrecomputeConfig, args=[*PRECOMPUTE, *words]).plan == plan


def test_another_value_of_plan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tyro.cli(PrecomputeConfig, args=[*PRECOMPUTE, "--plan", "exat"])
    assert "exat follows --plan, expected nothing or exact" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "arguments", "told"),
    [
        ("pipeline.cli", [*PRECOMPUTE, "--soft-targets.top-k", "-1"], "--soft-targets.top-k is -1, expected 0 or more"),
        ("pipeline.cli", [*PRECOMPUTE, "--block-size", "1"], "--block-size is 1, expected at least 2"),
        (
            "scripts.teacher.make_teacher",
            ["--out", "o", "--heads", "3"],
            "--width is 256, expected a multiple of --heads (3)",
        ),
        (
            "scripts.teacher.make_teacher",
            ["--out", "o", "--block-size", "300"],
            "--block-size is 300, expected at most",
        ),
        ("scripts.teacher.make_teacher", ["--out", "s3://bucket/teacher"], "s3:/bucket/teacher: looks like a URL"),
        ("scripts.teacher.make_teacher", ["--out", "tests"], "--out tests: is there already and is no teacher"),
        ("scripts.teacher.make_teacher", ["--out", "README.md"], "--out README.md: is there already and is no teacher"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    module: str,
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    errors = refused(module, *arguments, capfd=capfd)
    assert f"error: {told}" in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_missing_teacher_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """In a process of its own: importing torch and transformers says nothing either."""
    arguments = ["--teacher", str(tmp_path / "nothing"), "--data", "stdlib", "--out", str(tmp_path / "cache")]
    done = python("import pipeline.cli; pipeline.cli.main()", *arguments)
    assert done.returncode == 2
    assert str(tmp_path / "nothing") in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_2(
    teacher_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "broken.jsonl"
    data.write_text('{"text": "fine"}\n{"text": oops}\n')
    paths = ["--teacher", str(teacher_dir), "--data", str(data), "--out", str(tmp_path / "cache")]
    sizes = ["--block-size", "32", "--kinds", "soft_targets"]
    errors = refused("pipeline.cli", *paths, *sizes, capfd=capfd)
    assert "broken.jsonl" in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": 0, "tail_weight": None},
        {"tail_weight": 0.0},
        {"tail_weight": 1.0},
        {"tail_weight": float("nan")},
        {"temperatures": ()},
        {"temperatures": (1.0, 0.0)},
        {"temperatures": (2.0, 2.0)},
        {"temperatures": (float("inf"),)},
        {"mantissa_bits": 0},
        {"mantissa_bits": 11},
        {"scalar_mantissa_bits": 2},
        {"scalar_mantissa_bits": 11},
    ],
)
def test_soft_targets_that_cannot_be_made(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SoftTargetsConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"num_prompts": 0}, {"per_prompt": 0}, {"prompt_tokens": 0}, {"max_new_tokens": 0}, {"temperature": 0.0},
     {"temperature": -1.0}, {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.1}],
)  # fmt: skip
def test_samples_that_cannot_be_drawn(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SamplesConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"num_prompts": 0}, {"num_candidates": 1}, {"num_candidates": 5, "num_beams": 4}, {"prompt_tokens": 0},
     {"max_new_tokens": 0}, {"length_penalty": float("nan")}, {"length_penalty": float("inf")}],
)  # fmt: skip
def test_beams_that_cannot_be_searched(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BeamsConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"kinds": ()}, {"block_size": 1}, {"validation_fraction": 1.0}, {"validation_fraction": -0.1},
     {"batch_tokens": 0}, {"shard_tokens": 0}, {"max_tokens": 1}, {"document_separator": ""},
     {"document_separator": "\udcff"},
     {"out": "s3://bucket/cache", "work_dir": Path("s3://bucket/work")}],
)  # fmt: skip
def test_runs_that_cannot_be_made(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PrecomputeConfig(**({"teacher": "t", "data": "d", "out": Path("o")} | settings))
