"""Intervals of 95 %: what they are worth on draws whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from student.evaluation.intervals import jackknife_interval, mean_intervals, ratio_intervals
from student.evaluation.texts import distinct

NUM_TRIALS = 300


def test_a_ratio_over_blocks_is_covered() -> None:
    """A share of 0.95 has a standard deviation of 0.013 over this many trials."""
    rng, truth, covered = np.random.default_rng(0), 2.0, []
    for _ in range(NUM_TRIALS):
        counts = rng.integers(5, 100, 60)
        sums = rng.normal(truth, 1, 60) * counts + rng.normal(0, np.sqrt(counts))
        (interval,) = ratio_intervals(sums[:, None], counts[:, None].astype(np.float64))
        assert interval is not None
        covered.append(interval[0] < truth < interval[1])
    assert 0.90 < np.mean(covered) < 0.99


def test_a_share_of_prompts_is_covered() -> None:
    rng, truth = np.random.default_rng(1), 0.6
    intervals = [mean_intervals((rng.random((50, 1)) < truth).astype(np.float64))[0] for _ in range(NUM_TRIALS)]
    assert 0.90 < np.mean([low <= truth <= high for low, high in intervals if low]) < 0.99


def texts_of_words(rng: np.random.Generator, num_texts: int) -> list[list[int]]:
    """Texts of 24 words, of which each text uses some again and again."""
    probabilities = 1 / np.arange(1, 2001)
    probabilities /= probabilities.sum()
    return [rng.choice(rng.choice(2000, 15, p=probabilities), 24).tolist() for _ in range(num_texts)]


def test_distinct_words_are_covered_by_leaving_out_and_not_by_drawing_twice() -> None:
    rng = np.random.default_rng(2)

    def share(texts: list[list[int]]) -> float:
        found = distinct(texts, 1)
        assert found is not None
        return found

    truth = np.mean([share(texts_of_words(rng, 40)) for _ in range(500)])
    by_jackknife, by_bootstrap = [], []
    for trial in range(NUM_TRIALS):
        texts = texts_of_words(rng, 40)
        interval = jackknife_interval(share, texts)
        assert interval is not None
        by_jackknife.append(interval[0] < truth < interval[1])
        if trial < 30:  # it is so far off that a few show it
            replicates = [share([texts[i] for i in rng.integers(0, 40, 40)]) for _ in range(40)]
            by_bootstrap.append(min(replicates) < truth < max(replicates))
    assert np.mean(by_jackknife) > 0.92
    assert np.mean(by_bootstrap) < 0.3


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = [0.31, 0.52, 0.44, 0.60, 0.39, 0.47, 0.55, 0.36, 0.48, 0.42]
    error = np.std(values, ddof=1) / math.sqrt(10)
    expected = [np.mean(values) - 2.262 * error, np.mean(values) + 2.262 * error]
    assert jackknife_interval(lambda some: sum(some) / len(some), values) == pytest.approx(expected)
    # Ten groups of two whose means are these values.
    twice = [value - 0.01 for value in values] + [value + 0.01 for value in values]
    assert jackknife_interval(lambda some: sum(some) / len(some), twice) == pytest.approx(expected)


def test_a_share_stays_between_0_and_1() -> None:
    assert jackknife_interval(lambda some: sum(some) / len(some), [0.0, 0.0, 1.0]) == [0.0, 1.0]
    assert jackknife_interval(lambda some: sum(some) / len(some), [0.5, 0.5]) == [0.5, 0.5]


@pytest.mark.parametrize("num_draws", [0, 1])
def test_fewer_than_two_draws_have_no_interval(num_draws: int) -> None:
    ones = np.ones((num_draws, 2))
    assert ratio_intervals(ones, ones) == [None, None]
    assert mean_intervals(ones) == [None, None]
    assert jackknife_interval(lambda some: 0.5, [1.0] * num_draws) is None


def test_draws_that_count_for_nothing_are_left_out() -> None:
    sums, counts = np.array([[1.0, 5.0], [2.0, 0.0], [3.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    first, second = ratio_intervals(sums, counts)
    assert first is not None
    assert second is None
    assert mean_intervals(np.array([[0.2], [np.nan], [np.nan]])) == [None]
    assert mean_intervals(np.array([[0.2], [np.nan], [0.2]])) == [pytest.approx([0.2, 0.2])]
    assert jackknife_interval(lambda some: None if len(some) < 3 else 0.5, [1.0] * 3) is None


def test_an_interval_is_the_same_every_time_and_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    sums, counts = rng.normal(size=(30, 2)), rng.integers(1, 9, (30, 2)).astype(np.float64)
    expected = ratio_intervals(sums, counts)
    assert ratio_intervals(sums, counts) == expected
    monkeypatch.setattr("student.evaluation.intervals._CELLS", 70)
    for found, wanted in zip(ratio_intervals(sums, counts), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)
