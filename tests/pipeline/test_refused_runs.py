"""What a run refuses before it writes anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig, precompute
from pipeline.errors import (
    ContextTooShortError,
    DataError,
    NoPromptsError,
    NoSuchDataError,
    NoSuchTeacherError,
    NoUsableTextError,
)
from storage.errors import ConfigError, EndBeyondVocabularyError
from tests.precomputed import precomputed


def test_an_end_of_documents_that_the_teacher_has_no_row_for_is_refused(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, tmp_path: Path
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=100)
    with pytest.raises(EndBeyondVocabularyError, match=r"id 256, as the end of text, .* below 100"):
        precompute(configure(tmp_path / "cache", teacher=str(teacher)))


def test_an_out_that_is_somebody_elses_is_left_alone(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years of work")
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(ConfigError, match="--out"):
            precompute(configure(out))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert precomputed(configure(tmp_path / "empty", kinds=("beams",))).path == tmp_path / "empty"


def test_more_shards_than_a_manifest_holds(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.beginning.MAX_SHARDS", 5)
    with pytest.raises(ConfigError, match=r"^--shard-tokens 600 makes \d+ shards, a cache holds 5; expected --shard"):
        precompute(configure(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_more_probabilities_than_the_vocabulary_has(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"top-k is 258.*257"):
        precompute(configure(tmp_path / "cache", soft_targets=SoftTargetsConfig(top_k=258)))


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"block_size": 65}, "--block-size"),
        ({"samples": SamplesConfig(prompt_tokens=40, max_new_tokens=25)}, "--samples.prompt-tokens"),
        ({"beams": BeamsConfig(prompt_tokens=1, max_new_tokens=64)}, "--beams.prompt-tokens"),
        ({"samples": SamplesConfig(prompt_column="ask", max_new_tokens=64)}, "--samples.prompt-tokens"),
    ],
)
def test_more_tokens_than_the_context_holds(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, changes: dict[str, object], setting: str
) -> None:
    with pytest.raises(ContextTooShortError) as caught:
        precompute(configure(tmp_path / "cache", **changes))
    assert caught.value.setting.startswith(setting)
    assert (caught.value.wanted, caught.value.context_length) == (65, 64)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("empty.txt", "", NoUsableTextError),
        ("short.txt", "too short", NoUsableTextError),
        ("empty.jsonl", "", DataError),
        ("blank.jsonl", '{"text": ""}\n' * 3, NoUsableTextError),
    ],
)
def test_unusable_data_leaves_nothing_behind(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, name: str, content: str, error: type[Exception]
) -> None:
    data = tmp_path / name
    data.write_text(content)
    with pytest.raises(error):
        precompute(configure(tmp_path / "cache", data=str(data)))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["samples", "beams"])
def test_a_kind_without_a_prompt_is_refused(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, kind: str
) -> None:
    rows = [{"text": "the student learns", "ask": ""}] * 30
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"samples": SamplesConfig, "beams": BeamsConfig}[kind]
    for of_prompts, told in (
        ({"prompt_tokens": 28}, f"longer than --{kind}.prompt-tokens 28"),
        ({"prompt_column": "ask"}, "column 'ask' gives the training split none (30 prompts skipped"),
    ):
        config = configure(
            tmp_path / "cache", data=str(data), kinds=("soft_targets", kind),
            **{kind: settings(max_new_tokens=4, **of_prompts)},
        )  # fmt: skip
        with pytest.raises(NoPromptsError, match=re.escape(told)):
            precompute(config)
        assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("source", ["documents.txt", "stdlib", "directory"])
def test_plain_text_has_no_column_of_prompts(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, source: str
) -> None:
    (tmp_path / "directory").mkdir()
    for name in ("documents.txt", "directory/one.txt", "directory/two.text"):
        (tmp_path / name).write_text("the student learns alone " * 200)
    data = source if source == "stdlib" else str(tmp_path / source)
    asks = BeamsConfig(prompt_column="ask")
    with pytest.raises(ConfigError, match=r"^--beams\.prompt-column ask: .* plain text"):
        precompute(configure(tmp_path / "cache", data=data, beams=asks))
    assert not (tmp_path / "cache").exists()
    precompute(configure(tmp_path / "cache", data=str(tmp_path / "documents.txt"), beams=asks, kinds=("soft_targets",)))


def test_data_and_teachers_that_are_not_there(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    with pytest.raises(NoSuchDataError):
        precompute(configure(tmp_path / "cache", data=str(tmp_path / "nothing.txt")))
    with pytest.raises(NoSuchTeacherError):
        precompute(configure(tmp_path / "cache", teacher=str(tmp_path / "nothing")))
    assert not (tmp_path / "cache").exists()
