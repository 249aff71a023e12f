"""precompute with an --out that is a URL."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, precompute
from pipeline.cli import main
from pipeline.producers.soft_targets import SoftTargetsProducer
from storage import open_cache
from storage.errors import CacheMismatchError, ConfigError, WriteRefusedError
from storage.records.manifest import read_manifest
from storage.writing import remote_destination

Snapshot = Callable[[Path], dict[str, str]]


class Stop(Exception):
    """The injected fault."""


@pytest.fixture(scope="module")
def configure(
    helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PrecomputeConfig]:
    """Settings of a small run; work directories of URLs are kept apart from the user's."""
    work_dir = tmp_path_factory.mktemp("work")

    def configure(out: str | Path, **changes: object) -> PrecomputeConfig:
        settings = {
            "shard_tokens": 600,
            "samples": SamplesConfig(num_prompts=8, per_prompt=3, prompt_tokens=5, max_new_tokens=5),
            "beams": BeamsConfig(num_prompts=20, prompt_tokens=5, num_beams=3, num_candidates=3, max_new_tokens=3),
            "work_dir": work_dir if isinstance(out, str) else None,
        }
        return dataclasses.replace(helpers.tiny_config(teacher_dir, text_file, out, **settings), **changes)

    return configure


@pytest.fixture(scope="module")
def expected(configure: Callable[..., PrecomputeConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run to a directory leaves."""
    out = tmp_path_factory.mktemp("expected") / "cache"
    precompute(configure(out))
    return out


def test_a_stopped_run_to_a_url_finishes_with_the_bytes_of_a_directory(
    configure: Callable[..., PrecomputeConfig], expected: Path, tmp_path: Path, snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    there, config = tmp_path / "remote" / "cache", configure(f"file://{tmp_path}/remote/cache")
    assert config.work_dir is not None
    make, calls = SoftTargetsProducer.record_batches, []

    def stop_at_third(self: SoftTargetsProducer, *place: Any) -> Any:
        calls.append(place)
        if len(calls) == 3:
            raise Stop
        return make(self, *place)

    with monkeypatch.context() as patched:
        patched.setattr(SoftTargetsProducer, "record_batches", stop_at_third)
        with pytest.raises(Stop):
            precompute(config)
    assert not (there / "manifest.json").exists()
    assert list(config.work_dir.iterdir()), "the tokenized text is kept for the next run"
    kept = {path: path.stat().st_ino for path in there.rglob("*.arrow")}

    assert precompute(config) == read_manifest(there)
    assert snapshot(there) == snapshot(expected)
    assert {path: path.stat().st_ino for path in kept} == kept, "what was committed was not made again"
    assert list(config.work_dir.iterdir()) == []
    damaged = next(there.rglob("beams/*.arrow"))
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1  # the record knows, and the size does not change
    damaged.write_bytes(content)
    monkeypatch.setattr(remote_destination, "_REPLACING_VERSIONS", {version("teachonce")})
    assert precompute(config) == read_manifest(there)
    assert snapshot(there) == snapshot(expected)
    assert len(list(open_cache(there).record_batches("beams", "train"))) > 0

    with pytest.raises(CacheMismatchError, match=f"^file://{tmp_path}/remote/cache: .*seed"):
        precompute(dataclasses.replace(config, seed=7))
    assert snapshot(there) == snapshot(expected)


def test_a_url_that_cannot_be_is_one_line(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    for out, error, said in (
        ("hf://datasets/owner/name", ConfigError, "teachonce-cache push"),
        ("nosuchthing://a/b", ConfigError, "nosuchthing"),
        ("s3://", ConfigError, "expected protocol://bucket/path"),
        (f"file://{tmp_path}/file/cache", WriteRefusedError, "Not a directory"),
        ("file://tmp/cache", ConfigError, "expected file:///path, with three slashes"),
        (f"file://{tmp_path}/taken", ConfigError, "taken: holds a README.md and no cache"),
    ):
        (tmp_path / "file").write_text("no directory")
        (tmp_path / "taken").mkdir(exist_ok=True)
        (tmp_path / "taken" / "README.md").write_text("my notes")
        config = configure(out, work_dir=tmp_path / "work")
        with pytest.raises(error, match=said) as caught:
            precompute(config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())
    assert (tmp_path / "taken" / "README.md").read_text() == "my notes"
    with pytest.raises(ConfigError, match="--work-dir is for an --out that is a URL"):
        configure(tmp_path / "cache", work_dir=tmp_path)


def test_the_command_takes_a_url(
    teacher_dir: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = [
        "teachonce-precompute", "--teacher", teacher_dir, "--data", text_file,
        "--out", f"file://{tmp_path}/remote", "--work-dir", tmp_path / "work", "--kinds", "soft_targets",
        "--block-size", 32, "--max-tokens", 500, "--device", "cpu", "--quiet",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    with pytest.raises(SystemExit) as done:
        main()
    errors = capfd.readouterr().err
    assert not done.value.code, errors
    assert f"file://{tmp_path}/remote: complete, 2 shards" in errors
    assert (tmp_path / "remote" / "manifest.json").is_file()
