"""Choosing among candidates: the loss against loops, and ranking texts with a trained student."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from storage import Cache
from student.errors import BrokenStudentError, CandidatesError, CheckpointError, PromptError, StudentContextError
from student.generation.candidates import rank_candidates, read_candidates, trained_length_penalty
from student.losses.selection import length_normalised_scores, selection_loss
from student.model.framing import Framing

NONE = -math.inf


def naive_loss(student: list[float], teacher: list[float], temperature: float | None) -> float:
    """Over the candidates that are there, one by one."""
    present = [i for i, score in enumerate(teacher) if score > NONE]
    tau = temperature or 1.0

    def probabilities(scores: list[float]) -> dict[int, float]:
        weights = {i: math.exp((scores[i] - max(scores[j] for j in present)) / tau) for i in present}
        return {i: weight / sum(weights.values()) for i, weight in weights.items()}

    chosen = probabilities(teacher)
    if temperature is None:
        best = max(present, key=lambda i: (teacher[i], -i))
        chosen = {i: float(i == best) for i in present}
    return -sum(chosen[i] * math.log(p) for i, p in probabilities(student).items())


TEACHER = [[-1.0, -1.2, -2.0], [-0.5, -0.9, NONE], [-3.0, NONE, NONE], [-0.3, -0.3, -0.1]]
STUDENT = [[-2.0, -1.0, -1.5], [-4.0, -1.0, NONE], [-2.0, NONE, NONE], [-1.0, -2.0, -3.0]]


@pytest.mark.parametrize("temperature", [None, 0.1, 1.0, 3.0])
def test_the_loss_equals_the_naive_one_and_missing_candidates_count_nothing(temperature: float | None) -> None:
    student = torch.tensor(STUDENT, dtype=torch.float64)
    found = selection_loss(student, torch.tensor(TEACHER), temperature)
    expected = [naive_loss(s, t, temperature) for s, t in zip(STUDENT, TEACHER, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)
    assert found[2] == 0, "a single candidate leaves nothing to choose"


@pytest.mark.parametrize("temperature", [None, 0.1, 1.0])
def test_the_gradient_is_choice_minus_choice_and_nothing_at_missing_candidates(temperature: float | None) -> None:
    student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor(TEACHER, dtype=torch.float64)
    selection_loss(student, teacher, temperature).sum().backward()
    tau = temperature or 1.0
    is_best = torch.zeros_like(teacher).scatter(1, teacher.argmax(1, keepdim=True), 1.0)
    wanted = is_best if temperature is None else torch.softmax(teacher / tau, dim=1)
    expected = (torch.softmax(student.detach() / tau, dim=1) - wanted) / tau
    torch.testing.assert_close(student.grad, expected, atol=1e-12, rtol=1e-9)
    assert torch.all(student.grad[teacher == NONE] == 0)


def test_a_student_that_scores_as_the_teacher_does_has_the_least_loss() -> None:
    teacher = torch.tensor(TEACHER[:1], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = selection_loss(student, teacher, 0.5)
    loss.backward()
    assert student.grad.abs().max() < 1e-12
    assert loss.item() < selection_loss(torch.tensor(STUDENT[:1], dtype=torch.float64), teacher, 0.5).item()


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
def test_scores_are_sums_over_a_power_of_the_length(length_penalty: float) -> None:
    found = length_normalised_scores(torch.tensor([-6.0, -4.0]), torch.tensor([3, 1]), length_penalty)
    torch.testing.assert_close(found, torch.tensor([-6.0 / 3**length_penalty, -4.0]))


def test_candidates_are_lines_with_text(tmp_path: Path) -> None:
    path = tmp_path / "candidates.txt"
    path.write_text(" one\n\n two \n   \nthree")
    assert read_candidates(path) == [" one", " two ", "three"]
    path.write_bytes("\ufeffa\x0cb\r\nc\u2028d\x85e\n".encode())
    assert read_candidates(path) == ["a\x0cb", "c\u2028d\x85e"]


@pytest.mark.parametrize(("content", "found"), [("", 0), ("only one\n", 1), ("\n\n", 0)])
def test_fewer_than_two_candidates_are_refused(tmp_path: Path, content: str, found: int) -> None:
    path = tmp_path / "candidates.txt"
    path.write_text(content)
    with pytest.raises(CandidatesError) as caught:
        read_candidates(path)
    assert caught.value.found == f"holds {found} candidates"


def test_a_prompt_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(PromptError, match="character 2"):
        rank_candidates(None, None, FRAMING, "a \udcff", ["b", "c"], 1.0)


def test_a_candidates_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "nothing.txt", tmp_path, tmp_path / "binary"):
        with pytest.raises(CandidatesError, match=f"{path.name}: cannot be read"):
            read_candidates(path)


FRAMING = Framing(beginning_ids=(), end_ids=(256,))


@pytest.fixture
def tokenizer(cache: Cache) -> Any:
    return AutoTokenizer.from_pretrained(cache.tokenizer_dir)


@torch.inference_mode()
def naive_score(model: Any, prompt: list[int], candidate: list[int], length_penalty: float) -> float:
    logits = model(input_ids=torch.tensor([prompt + candidate])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=1)
    total = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(candidate))
    return total / len(candidate) ** length_penalty


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_ranked_candidates_carry_the_students_own_scores(
    make_student: Callable[..., Any], tokenizer: Any, length_penalty: float
) -> None:
    model, prompt = make_student(), "the teacher"
    texts = [" ran once", " knew", " learns from it alone", "x"]
    ranked = rank_candidates(model, tokenizer, FRAMING, prompt, texts, length_penalty)
    ids = tokenizer([prompt, *texts], add_special_tokens=False)["input_ids"]
    expected = {
        text: naive_score(model, ids[0], candidate, length_penalty)
        for text, candidate in zip(texts, ids[1:], strict=True)
    }
    assert [candidate.text for candidate in ranked] == sorted(texts, key=lambda text: -expected[text])
    for candidate in ranked:
        assert candidate.score == pytest.approx(expected[candidate.text], abs=1e-4)


def test_an_empty_prompt_can_be_continued(make_student: Callable[..., Any], tokenizer: Any) -> None:
    ranked = rank_candidates(make_student(), tokenizer, FRAMING, "", ["a", "b"], 1.0)
    assert {candidate.text for candidate in ranked} == {"a", "b"}


def test_a_candidate_longer_than_the_context_is_an_error_of_its_own(
    make_student: Callable[..., Any], tokenizer: Any
) -> None:
    rank_candidates(make_student(), tokenizer, FRAMING, "x" * 30, ["y" * 35, "z"], 1.0)
    with pytest.raises(StudentContextError) as caught:
        rank_candidates(make_student(), tokenizer, FRAMING, "x" * 30, ["y" * 36, "z"], 1.0)
    assert caught.value.context_length == 64


def test_scores_that_are_no_numbers_rank_nothing(make_student: Callable[..., Any], tokenizer: Any) -> None:
    model = make_student()
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(math.nan)
    with pytest.raises(BrokenStudentError):
        rank_candidates(model, tokenizer, FRAMING, "x", ["y", "z"], 1.0)


def test_the_length_penalty_is_that_of_the_training_run(tmp_path: Path) -> None:
    assert trained_length_penalty(tmp_path) == 1.0
    for recorded, expected in ((None, 1.0), (0.5, 0.5), (0.0, 0.0)):
        (tmp_path / "run.json").write_text(json.dumps({"length_penalty": recorded}))
        assert trained_length_penalty(tmp_path) == expected
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json"):
        trained_length_penalty(tmp_path)
