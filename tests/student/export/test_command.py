"""An export appears whole and proved, or not at all."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

import student.cli
from storage import Cache
from storage.errors import ConfigError, MissingExtraError, TeachonceError, WriteRefusedError
from student.errors import BrokenStudentError, DisagreementError, NoSuchStudentError, RuntimeFailedError
from student.export import command, readers
from student.export.command import export_student
from student.export.config import TOLERANCES_NATS, ExportConfig
from student.export.gguf import file
from student.export.model_card import data_of, licences_of, model_card
from student.export.trial import Trial
from student.run_record import RUN_NAME, read_run

Make = Callable[..., ExportConfig]
COMBINATIONS = "onnx with none or int8; gguf with none or q8_0; safetensors with none"


@pytest.fixture(scope="module")
def trained(cached_student: tuple[Path, Cache], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with the record of a run on the cache."""
    directory = shutil.copytree(cached_student[0], tmp_path_factory.mktemp("trained") / "student")
    facts = {
        "cache_sha256": cached_student[1].rows_sha256, "preset": "mini", "loss": "forward_kl", "max_steps": 8,
        "length_penalty": 0.5, "teacher": cached_student[1].identity.teacher,
    }  # fmt: skip
    (directory / RUN_NAME).write_text(json.dumps(facts))
    return directory


@pytest.fixture(scope="module")
def kept(
    trained: Path, cached_student: tuple[Path, Cache], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Trial]:
    """A float16 export and what was found of it."""
    out = tmp_path_factory.mktemp("kept") / "small"
    config = ExportConfig(
        student=trained, out=out, format="safetensors", cache=cached_student[1].path, max_tokens=200, quiet=True
    )
    return out, export_student(config)


def test_float16_safetensors_load_as_any_model_and_choose_as_the_student(
    kept: tuple[Path, Trial], trained: Path
) -> None:
    out, trial = kept
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    original = AutoModelForCausalLM.from_pretrained(trained).state_dict()
    assert model.dtype == torch.float16
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, original[name].half()), name
    assert (
        AutoTokenizer.from_pretrained(out)("a b")["input_ids"]
        == AutoTokenizer.from_pretrained(trained)("a b")["input_ids"]
    )
    assert trial.file_bytes < 0.6 * trial.student_bytes
    assert json.loads((out / RUN_NAME).read_text())["length_penalty"] == 0.5
    assert [path.name for path in out.parent.iterdir()] == ["small"]


def test_a_student_whose_logits_are_not_finite_is_told_and_not_exported(
    trained: Path, cached_student: tuple[Path, Cache], tmp_path: Path
) -> None:
    broken = shutil.copytree(trained, tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(BrokenStudentError, match=str(broken)):
        export_student(
            ExportConfig(
                student=broken, out=tmp_path / "out", format="safetensors", cache=cached_student[1].path, quiet=True
            )
        )
    assert not (tmp_path / "out").exists()


def test_a_trial_tells_what_was_measured_beside_the_student(kept: tuple[Path, Trial]) -> None:
    out, trial = kept
    assert trial.runtime.startswith("transformers ")
    assert trial.agreement.num_targets >= 150
    assert 0 < trial.agreement.kl_nats < trial.tolerance_nats
    for speed in (trial.speed, trial.student_speed):
        assert speed.tokens_per_second > 0
        if sys.platform == "linux":
            assert speed.resident_bytes is not None
            assert speed.library_bytes is not None
            assert speed.resident_bytes >= speed.library_bytes > 10**7
    first, rule, second, third = trial.table().splitlines()
    assert len({len(first), len(rule), len(second), len(third)}) == 1
    assert set(rule) == set("| -:")
    assert f"{trial.agreement.perplexity:.3f}" in third
    card = (out / "README.md").read_text()
    assert trial.table() in card
    assert "from `" in card


def test_a_card_states_data_and_licence_of_the_very_cache_alone(
    kept: tuple[Path, Trial], trained: Path, cached_student: tuple[Path, Cache], bucketed_cache: Cache
) -> None:
    cache = cached_student[1]
    source = cache.identity.data["source"]
    assert f"Data: `{source}`" in model_card(read_run(trained), cache, kept[1], "small")
    adapted = model_card(read_run(trained) | {"lora": {"rank": 4}}, cache, kept[1], "small")
    assert "in `8` steps by adapters of rank `4`, preset `mini`" in adapted
    for other in (bucketed_cache, None):
        card = model_card(read_run(trained), other, kept[1], "small")
        assert "not known" in card
        assert source not in card


@pytest.mark.parametrize(
    ("stated", "licences"),
    [("mit", ["mit"]), (["mit", "cc0-1.0"], ["mit", "cc0-1.0"]), (None, []), (["mit", None], []), ({"a": 1}, [])],
)
def test_the_licence_is_that_of_the_very_cache_alone(
    trained: Path, cached_student: tuple[Path, Cache], bucketed_cache: Cache, stated: object, licences: list[str]
) -> None:
    run, found = read_run(trained), []
    for cache in (cached_student[1], bucketed_cache):
        identity = dataclasses.replace(cache.identity, data=cache.identity.data | {"licence": stated})
        licensed = dataclasses.replace(cache, manifest=dataclasses.replace(cache.manifest, identity=identity))
        found.append(licences_of(data_of(run, licensed)))
    assert found == [licences, []]
    assert licences_of(data_of(run, None)) == []


def test_a_strangers_words_are_no_markup(kept: tuple[Path, Trial], trained: Path, tmp_path: Path) -> None:
    run = json.loads((trained / RUN_NAME).read_text())
    run["teacher"]["id"] = "`<script>x</script>\n---\n# [a](b)\x1b[31m"
    directory = tmp_path / "student"
    directory.mkdir()
    (directory / RUN_NAME).write_text(json.dumps(run))
    card = model_card(read_run(directory), None, kept[1], "small\n# big")
    (line,) = (line for line in card.splitlines() if "script" in line)
    assert re.sub(r"`[^`]*`", "", line).count("<") == 0
    assert "\x1b" not in card
    assert card.count("\n---\n") == 2 - card.startswith("---\n")
    assert "\n# big" not in card


def main(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["teachonce-student", "export", *arguments])
        with pytest.raises(SystemExit) as done:
            student.cli.main()
    return int(done.value.code or 0)


def test_the_command_writes_gguf_and_prints_json(export_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = export_config()
    assert config.text is not None
    assert main(
        str(config.student), "--format", "gguf", "--quantize", "q8_0", "--out", str(config.out),
        "--text", str(config.text), "--max-tokens", "300", "--quiet", "--json",
    ) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["file_bytes"] == config.out.stat().st_size
    assert found["agreement"]["kl_nats"] < found["tolerance_nats"]
    assert {path.name for path in config.out.parent.iterdir()} == {"exported.gguf", "text.txt"}


def test_help_states_every_tolerance() -> None:
    stated = " ".join((student.cli.export.__doc__ or "").split())
    for tolerance_nats in TOLERANCES_NATS.values():
        assert f" {tolerance_nats:g}" in stated


@pytest.fixture
def nothing_is_left(export_config: Make) -> Iterator[None]:
    yield
    assert [path.name for path in export_config().out.parent.iterdir()] == ["text.txt"]


@pytest.mark.usefixtures("nothing_is_left")
def test_a_weight_that_is_not_the_students_is_noticed(export_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = file.gguf_weights

    def damaged(model: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for name, weight in original(model):
            yield name, weight * np.float32(1.05) if name == "blk.1.ffn_up.weight" else weight

    monkeypatch.setattr(file, "gguf_weights", damaged)
    with pytest.raises(DisagreementError, match=r"exported\.gguf: not kept: .* allowed are 2e-05") as caught:
        export_student(export_config())
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(200), b"no gguf"])
def test_a_file_that_its_runtime_cannot_read_is_not_kept(
    export_config: Make, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(
        command, "write_export", lambda config, model, tokenizer, path, licences: path.write_bytes(content)
    )
    with pytest.raises(RuntimeFailedError, match=r"exported\.gguf: its runtime fails \(exit code 1: "):
        export_student(export_config())


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(("refused", "format"), [("write_export", "gguf"), ("model_card", "safetensors")])
def test_a_full_disk_is_one_line(
    export_config: Make, monkeypatch: pytest.MonkeyPatch, refused: str, format: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_export", lambda config, model, tokenizer, path, licences: path.mkdir())
    monkeypatch.setattr(command, "run_trial", lambda *_: None)
    monkeypatch.setattr(command, refused, refuse)
    config = export_config(format=format)
    said = rf"{re.escape(config.out.name)}: the write failed \(.*No space left on device"
    with pytest.raises(WriteRefusedError, match=said):
        export_student(config)


@pytest.mark.usefixtures("nothing_is_left")
def test_a_student_that_is_none_is_refused(export_config: Make, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(NoSuchStudentError):
        export_student(export_config(student=tmp_path_factory.mktemp("empty")))


def test_what_is_there_is_left_alone(export_config: Make) -> None:
    config = export_config()
    config.out.write_text("mine")
    with pytest.raises(ConfigError, match="something is there already"):
        export_student(config)
    assert config.out.read_text() == "mine"


@pytest.mark.parametrize("format", ["onnx", "gguf", "safetensors"])
@pytest.mark.parametrize("quantize", ["none", "int8", "q8_0"])
def test_what_makes_no_sense_together_is_told_with_what_does(export_config: Make, format: str, quantize: str) -> None:
    if (format, quantize) in TOLERANCES_NATS:
        assert export_config(format=format, quantize=quantize).tolerance_nats == TOLERANCES_NATS[format, quantize]
    else:
        with pytest.raises(ConfigError, match=f"--format {format} with --quantize {quantize}: expected {COMBINATIONS}"):
            export_config(format=format, quantize=quantize)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "neither --cache nor --text: name one"),
        ({"cache": "cache"}, "both --cache and --text: name one"),
        ({"max_tokens": 1}, "--max-tokens is 1"),
        ({"out": Path("student.bin")}, r"makes a file ending in \.gguf"),
        ({"format": "onnx", "out": Path("student.gguf")}, r"makes a directory, not a \.gguf file"),
    ],
)
def test_a_wrong_setting_is_one_line(export_config: Make, changes: dict[str, object], message: str) -> None:
    with pytest.raises(TeachonceError, match=message) as caught:
        export_config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("gguf", "gguf")])
def test_a_missing_extra_is_one_line_with_what_to_install(
    export_config: Make, monkeypatch: pytest.MonkeyPatch, format: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"--format {format} needs {package}, .*-e \.\[export\]"):
        export_student(export_config(format=format))


def test_gguf_falls_back_to_numpy_without_llama_cpp(export_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    config = export_config()
    config.out.touch()
    assert readers.runtime_of(config.out).name == "gguf's reader and numpy"


def test_the_command_ends_with_2_and_one_line(export_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(export_config())
    arguments = [str(config.student), "--format", "safetensors", "--out", str(config.out.with_suffix(""))]
    assert main(*arguments, "--text", "nowhere.txt") == 2
    assert capsys.readouterr().err.count("\n") == 1
