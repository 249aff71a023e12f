"""The words follow from the numbers, good or bad."""

from __future__ import annotations

from html import unescape

import pytest

from storage.pages.numbers import interval, share_interval
from student.report.headline import headline
from student.report.summary import comparison, sentences, summary_view, told_about
from tests.student.report.measures import TEACHER, made_up_measures
from tests.student.report.test_runs import make_run

PLAIN = {"mix": {"soft_targets": 0, "samples": 0, "beams": 0, "labels": 1}}


def words(**changes: object) -> str:
    return " ".join(sentences(make_run(measures=made_up_measures(**changes)), TEACHER))


def test_a_summary_says_every_number() -> None:
    text = words()
    for part in (
        "student has 250,000 parameters, 25.0 % of the teacher's 1.0 million, and takes 1.0 MB, 4.0 times less",
        "clearly worse than its teacher: its perplexity is 100.2, the teacher's 50.1 (100 % higher)",
        "lost 0.500 nats per token of what the teacher says (KL) and names the teacher's first choice at 56 %",
        "picks the best for 62 % of 32 prompts; guessing would for 25 %.",
        "As a draft model it has 72 % of its tokens accepted by the teacher, 2.9 tokens per step with drafts of 4.",
        "about as varied as the teacher's: 81 % of its token pairs are different ones, 82 % of the teacher's",
    ):
        assert part in text


@pytest.mark.parametrize("interval", [[0.17, 0.83], None])
def test_a_choice_that_may_be_chance_is_called_so(interval: list[float] | None) -> None:
    text = words(selection_accuracy=0.5, num_selections=6, selection_accuracy_interval=interval)
    assert "for 50 % of 6 prompts; guessing would for 25 %, from which these prompts cannot tell it." in text


@pytest.mark.parametrize(
    ("perplexity", "verdict"),
    [
        (49.0, "better than its teacher"),
        (50.125, "about as well as its teacher: its perplexity is 50.1, the teacher's 50.1 (as high)"),
        (49.9, "about as well as its teacher"),
        (50.6, "about as well as its teacher"),
        (55.0, "nearly as well as"),
        (70.0, "noticeably worse"),
        (120.0, "clearly worse"),
        (5000.0, "far worse"),
    ],
)
def test_the_verdict_follows_the_perplexity(perplexity: float, verdict: str) -> None:
    text = words(perplexity=perplexity)
    assert verdict in text
    assert ("lower)" in text) == (perplexity < 49.5)
    assert ("higher)" in text) == (perplexity > 50.5)


def test_a_student_larger_than_its_teacher() -> None:
    assert "2.0 times as much" in words(model_bytes=8_000_000)
    assert "200.0 % of the teacher's" in words(num_parameters=2_000_000)


def test_a_student_that_is_its_teacher() -> None:
    text = words(model_bytes=4_000_000, kl_nats=-0.0001)
    assert "lost 0.000 nats" in text
    assert "as much as the teacher" in text


def test_a_lower_bound_is_called_one() -> None:
    assert "lost at least 0.500 nats" in words(kl_is_lower_bound=True)


def test_less_and_more_varied_only_beyond_chance() -> None:
    def generation(student: float, teacher: float) -> dict[str, object]:
        return {
            side: {"distinct_2": value, "distinct_2_interval": [value - 0.02, value + 0.02]}
            for side, value in (("student", student), ("teacher", teacher))
        }

    assert "less varied" in words(generation=generation(0.5, 0.8))
    assert "more varied" in words(generation=generation(0.8, 0.5))
    assert "about as varied" in words(generation=generation(0.78, 0.8))
    without = {side: {"distinct_2": 1.0, "distinct_2_interval": None} for side in ("student", "teacher")}
    assert "these few cannot tell" in words(generation=without)


def test_what_was_not_measured_is_not_told() -> None:
    absent = dict.fromkeys(
        ("perplexity", "teacher_perplexity", "kl_nats", "top1_agreement", "top5_agreement", "selection_accuracy",
         "selection_chance", "generation", "calibration", "mean_reciprocal_rank", "kendall_tau",
         "acceptance", "tokens_per_teacher_step",
         "perplexity_interval", "teacher_perplexity_interval", "kl_nats_interval", "top1_agreement_interval")
    )  # fmt: skip
    text = words(**absent)
    assert text.count(".") < 6
    run = make_run(measures=made_up_measures(**absent), tokens_per_second=None)
    assert "—" in summary_view([run], TEACHER)
    assert headline([run], TEACHER, "a machine").count("—") > 15


def test_footnotes_are_of_rows_that_have_one() -> None:
    def marked(**changes: object) -> str:
        return headline([make_run(measures=made_up_measures(**changes))], TEACHER, "a machine")

    whole = marked()
    assert [whole.count(f"<sup>{mark}</sup>") for mark in "12345"] == [2, 2, 2, 2, 0]
    assert "Best candidate picked <sup>3</sup>" in whole
    without_kl = marked(kl_nats=None)
    assert [without_kl.count(f"<sup>{mark}</sup>") for mark in "1234"] == [2, 2, 2, 0]
    assert "Best candidate picked <sup>2</sup>" in without_kl
    reason = "the cache's texts were drawn at temperature 0.7"
    other_law = marked(acceptance=None, tokens_per_teacher_step=None, no_acceptance_because=reason)
    assert f"<sup>4</sup> Not known, for {reason}." in unescape(other_law)


def test_against_the_baseline() -> None:
    def compared(kl: float) -> str | None:
        other = made_up_measures(kl_nats=kl, kl_nats_interval=[kl - 0.02, kl + 0.02], perplexity=110.0)
        return comparison(make_run(measures=made_up_measures()), make_run(name="plain", measures=other))

    assert "student is 20 % closer to the teacher: KL 0.500 against 0.625" in (compared(0.625) or "")
    assert "the intervals overlap" in (compared(0.53) or "")
    assert "not closer to the teacher but farther" in (compared(0.3) or "")
    none = make_run(measures=made_up_measures(kl_nats=None))
    assert comparison(none, none) is None


def test_baselines_are_compared_with_and_not_told_about() -> None:
    student, plain = (
        make_run(measures=made_up_measures()),
        make_run(name="plain", settings=PLAIN, measures=made_up_measures()),
    )
    assert told_about([student, plain]) == [student]
    assert told_about([plain]) == [plain]
    assert "Compared with plain" in summary_view([student, plain], TEACHER)
    assert "Compared with" not in summary_view([plain], TEACHER)


def test_the_headline_has_the_figures_of_every_model() -> None:
    runs = [
        make_run(measures=made_up_measures(), tokens_per_second=671.4),
        make_run(name="<plain>", settings=PLAIN, measures=made_up_measures(kl_nats=0.75, kl_nats_interval=None)),
    ]
    text = headline(runs, TEACHER, "2 threads")
    figures = (
        "1,000,000", "250,000", "25.0 %", "671", "50.1", "100.2", "0.500", "0.750", "56 %", "62 %", "0.77", "0.47",
        "72 %", "2.87", share_interval([0.69, 0.74], 0), interval([2.75, 2.99], 2),
        "1.5 %", "1.1 %", interval([45.25, 55.5], 1), interval([91.5, 110.75], 1), interval([0.48, 0.52], 3),
        share_interval([0.55, 0.57], 0),
    )  # fmt: skip
    for figure in figures:
        assert f">{figure}<" in text, figure
    assert "&lt;plain&gt;" in text
    assert "plain text alone" in text
    adapted = make_run(settings={"num_trained_parameters": 4096}, measures=made_up_measures())
    assert "25.0 %, 4,096 trained" in headline([adapted], TEACHER, "2 threads")
    assert "Measured for this page on 2 threads" in unescape(text)
