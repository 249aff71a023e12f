"""A student learns at the positions that a choice names, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch

from scripts.study.networks import StudentConfig, new_model
from scripts.study.positions import PositionChoice, Survey, position_choice
from scripts.study.schemes import Teaching, all_schemes, with_labels
from scripts.study.students import Student

VOCAB, NUM_POSITIONS = 90, 2 * 16
SCHEMES = {scheme.name: scheme for scheme in all_schemes()}


def teaching_of(num_positions: int, seed: int = 0) -> Teaching:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.log_softmax(3 * torch.randn(num_positions, VOCAB, generator=generator), dim=1)
    uniforms = torch.rand(num_positions, 50, generator=generator, dtype=torch.float64)
    return Teaching.of(logprobs, uniforms, torch.randint(VOCAB, (num_positions,), generator=generator))


def expected_score(name: str, student: torch.Tensor, teaching: Teaching) -> torch.Tensor:
    entropy = torch.special.entr(student.exp()).sum(1)
    kl = torch.nn.functional.kl_div(student, teaching.logprobs.double(), log_target=True, reduction="none").sum(1)
    if name.startswith("entropy"):
        return entropy
    if name.startswith("random"):
        return teaching.uniforms[:, 1]
    h, d = ((x - x.min()) / (x.max() - x.min()) for x in (entropy, kl))
    return h + d - h * d


@pytest.mark.parametrize("name", ["entropy 20 %", "entropy 80 %", "unsure or wrong 50 %", "random 20 %"])
def test_weights_are_equal_at_the_positions_of_highest_score_and_0_elsewhere(name: str) -> None:
    num_positions = 37
    teaching = teaching_of(num_positions)
    generator = torch.Generator().manual_seed(1)
    student = torch.log_softmax(4 * torch.randn(num_positions, VOCAB, generator=generator, dtype=torch.float64), dim=1)
    survey = Survey()
    for part in (slice(0, 20), slice(20, num_positions)):
        rows = Teaching.of(teaching.logprobs[part], teaching.uniforms[part], teaching.label_ids[part])
        survey.add(student[part].float(), rows)
    count = round(int(name.split()[-2]) / 100 * num_positions)
    chosen = expected_score(name, student, teaching).argsort(descending=True)[:count]
    expected = torch.zeros(num_positions)
    expected[chosen] = num_positions / count
    torch.testing.assert_close(position_choice(name).weights(survey), expected)


def test_the_share_of_a_choice_is_at_least_one_position() -> None:
    survey = Survey()
    survey.add(torch.log_softmax(torch.zeros(3, VOCAB), dim=1), teaching_of(3))
    choice = PositionChoice(name="few", share=0.01, score=lambda entropy, kl, uniform: uniform)
    assert choice.weights(survey).sum() == 3


def test_the_gradient_is_that_of_the_mean_loss_over_the_chosen_positions() -> None:
    config = StudentConfig(layers=1, width=64)
    model = new_model(config, VOCAB, 16, 3, torch.device("cpu"))
    truth = copy.deepcopy(model).double()
    student = Student(SCHEMES["full"], config, model, position_choice("entropy 20 %"))
    ids = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(5))
    teaching = teaching_of(NUM_POSITIONS)
    parts = [
        (part, Teaching.of(teaching.logprobs[part], teaching.uniforms[part], teaching.label_ids[part]))
        for part in (slice(0, 23), slice(23, NUM_POSITIONS))
    ]
    student.begin(ids)
    for part, rows in parts:
        student.survey_chunk(part, rows)
    for part, rows in parts:
        student.add_chunk(part, rows)
    student.backward()

    logs = torch.log_softmax(truth(ids).logits.flatten(0, 1), dim=1)
    chosen = torch.special.entr(logs.exp()).sum(1).topk(round(0.2 * NUM_POSITIONS)).indices
    (-(teaching.probs.double() * logs).sum(1)[chosen].mean()).backward()
    found = dict(model.named_parameters())
    for name, parameter in truth.named_parameters():
        torch.testing.assert_close(found[name].grad.double(), parameter.grad, atol=1e-6, rtol=1e-4)


def test_labels_are_added_by_their_weight() -> None:
    teaching = teaching_of(5)
    softmax = torch.softmax(torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(2)), dim=1)
    labels = torch.nn.functional.one_hot(teaching.label_ids, VOCAB)
    expected = softmax - teaching.probs + 0.3 * (softmax - labels)
    torch.testing.assert_close(with_labels(SCHEMES["full"], 0.3).gradient(softmax, teaching), expected)
