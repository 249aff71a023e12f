"""Every causal family of transformers is what docs/models.md says of it; all but a dozen under the marker `models`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scripts.models.families import families
from scripts.models.guarded import guarded
from scripts.models.left_out import LEFT_OUT
from scripts.models.materials import make_student_cache
from scripts.models.students import try_student
from scripts.models.sweep import Found, read_found, sweep
from scripts.models.table import read_words, render
from scripts.models.teachers import try_teacher
from scripts.models.truth import Truth
from scripts.models.verdict import BY_ROW, FAILED, NO, SOFT_TARGETS_ONLY, WRONG, YES, Verdict
from tests.places import ROOT

FAST = (
    "bloom", "cohere", "falcon", "gemma2, cap 3", "granite", "gpt2", "llama", "llama, padded rows", "mamba", "mistral",
    "mixtral", "phi3, longrope",
)  # fmt: skip
PAGE = ROOT / "docs" / "models.md"
FAMILIES = families()


@pytest.fixture(scope="session")
def student_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student_cache(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.models) for name in FAMILIES]
)
def test_a_family_is_what_the_page_says(name: str, student_cache: Path, tmp_path: Path) -> None:
    for side in ("teacher", "student"):
        (tmp_path / side).mkdir()
    teacher = try_teacher(FAMILIES[name], tmp_path / "teacher")
    student = try_student(FAMILIES[name], student_cache, tmp_path / "student")
    assert (teacher.word, student.word) == read_words(PAGE)[name], (teacher.why, student.why)


def test_the_page_names_every_family_and_nothing_fails() -> None:
    words = read_words(PAGE)
    assert set(words) == set(FAMILIES)
    assert {word for both in words.values() for word in both} <= {YES, BY_ROW, SOFT_TARGETS_ONLY, NO}
    assert set(LEFT_OUT) < set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_a_difference_is_found(student_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Truth.logits
    monkeypatch.setattr(Truth, "logits", lambda self, ids: logits(self, ids) * 1.02)
    for side in ("teacher", "student"):
        (tmp_path / side).mkdir()
    teacher = try_teacher(FAMILIES["gpt2"], tmp_path / "teacher")
    student = try_student(FAMILIES["gpt2"], student_cache, tmp_path / "student")
    assert (teacher.word, student.word) == (WRONG, WRONG)
    assert "nats" in teacher.why
    assert "gradient" in student.why


def test_a_process_that_fails_or_ends_is_a_verdict() -> None:
    def divide() -> float:
        return 1 / 0

    assert guarded(divide).word == FAILED
    assert "ZeroDivisionError" in guarded(divide).why
    assert guarded(lambda: os._exit(3)) == Verdict(word=FAILED, why="exit status 3")
    assert guarded(lambda: 7) == 7


def test_what_a_sweep_found_is_read_back_and_stands_in_the_page(tmp_path: Path) -> None:
    results = tmp_path / "models.jsonl"
    (found,) = sweep(["gpt2"], results)
    assert read_found(results) == {"gpt2": found}
    page = tmp_path / "models.md"
    page.write_text(render({"gpt2": found}))
    assert read_words(page) == {"gpt2": (found.teacher.word, found.student.word)}


def test_a_reason_stands_beside_the_words() -> None:
    no = Verdict(word=NO, why="teacher xlstm: too | strange")
    page = render({"xlstm": Found(family="xlstm", teacher=no, student=Verdict(word=YES), seconds=1.0)})
    assert "| `xlstm` | no | yes | teacher: too \\| strange |" in page
