"""How varied texts are, against plain loops."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter

import pytest

from student.evaluation.texts import distinct, has_sacrebleu, measure_texts, repetition, self_bleu, vocabulary_coverage

Text = list[int]


def make_texts(num_texts: int, seed: int = 0, longest: int = 20, num_ids: int = 30) -> list[Text]:
    rng = random.Random(seed)
    return [rng.choices(range(1, num_ids), k=rng.randint(1, longest)) for _ in range(num_texts)]


def ngrams(text: Text, n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def naive_bleu(text: Text, references: list[Text]) -> float:
    """BLEU-4 (Papineni et al. 2002) with exponential smoothing, orders that the text is too short for left out."""
    closest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    logs, halvings = [], 0
    for n in range(1, min(4, len(text)) + 1):
        counts = Counter(ngrams(text, n))
        right = sum(
            min(count, max(Counter(ngrams(reference, n))[ngram] for reference in references))
            for ngram, count in counts.items()
        )
        if n == 1 and not right and not any(set(text) & set(reference) for reference in references):
            return 0.0
        halvings += right == 0
        logs.append(math.log((right or 2.0**-halvings) / sum(counts.values())))
    brevity = min(0.0, 1 - closest / len(text))
    return math.exp(brevity + sum(logs) / len(logs))


@pytest.mark.parametrize("seed", range(3))
def test_self_bleu_is_the_mean_of_plain_bleu(seed: int) -> None:
    texts = make_texts(12, seed, longest=10)
    expected = [naive_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    found = self_bleu(texts)
    assert found == pytest.approx(sum(expected) / 12, rel=1e-9)
    assert 0 < sum(expected) / 12 < 1
    assert self_bleu([*texts, []]) == found


def test_self_bleu_at_its_ends() -> None:
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1.0)
    assert self_bleu([[1, 2, 3], [4, 5, 6]]) == 0.0
    assert self_bleu([[1, 2]]) is None
    assert self_bleu([[], []]) is None


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_is_the_share_of_different_ngrams(n: int) -> None:
    texts = make_texts(10)
    everything = [ngram for text in texts for ngram in ngrams(text, n)]
    assert distinct(texts, n) == len(set(everything)) / len(everything)
    assert distinct([[1], []], 2) is None
    assert distinct([], n) is None


def test_repetition_is_the_share_of_repeated_four_grams_of_one_text() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 8) == pytest.approx(1 - 1 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert repetition([1, 2, 3]) is None


def test_coverage_is_the_share_of_ids_that_occur() -> None:
    assert vocabulary_coverage([[1, 2], [2, 3], []], 30) == 3 / 30
    assert vocabulary_coverage([[], []], 30) is None


def test_figures_of_prompts_are_those_of_their_texts() -> None:
    prompts = [[text * (1 + seed % 3) for text in make_texts(2, seed, num_ids=400)] for seed in range(20)]
    texts = [text for of_prompt in prompts for text in of_prompt]
    found = measure_texts(prompts, 500, with_self_bleu=True)
    long_enough = [r for text in texts if (r := repetition(text)) is not None]
    expected = {
        "num_texts": 40,
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "distinct_3": distinct(texts, 3),
        "self_bleu": self_bleu(texts),
        "repetition_rate": sum(long_enough) / len(long_enough),
        "mean_length_tokens": sum(map(len, texts)) / 40,
        "vocabulary_coverage": vocabulary_coverage(texts, 500),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    intervals = {name for name in expected if name != "num_texts"}
    assert set(found) == set(expected) | {f"{name}_interval" for name in intervals}
    for name in intervals:
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high, name
        assert low < high, name


def test_self_bleu_takes_no_more_than_the_first_prompts() -> None:
    prompts = [make_texts(2, seed, longest=6) for seed in range(40)]
    found = measure_texts(prompts, 50, with_self_bleu=True)
    assert found["num_texts"] == 80
    assert found["self_bleu"] == self_bleu([text for of_prompt in prompts[:32] for text in of_prompt])


def test_few_and_empty_texts() -> None:
    one = measure_texts([[[1, 2, 3, 4]]], 50, with_self_bleu=True)
    assert one["distinct_1"] == 1.0
    assert one["mean_length_tokens"] == 4.0
    assert one["self_bleu"] is None
    assert {value for name, value in one.items() if name.endswith("_interval")} == {None}
    empty = measure_texts([[[]], [[]]], 50, with_self_bleu=True)
    measured = {name: value for name, value in empty.items() if value is not None}
    assert measured == {"num_texts": 2, "mean_length_tokens": 0.0, "mean_length_tokens_interval": [0.0, 0.0]}


def test_without_sacrebleu_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert has_sacrebleu()
    for name in ("sacrebleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not has_sacrebleu()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "pip install sacrebleu" in captured.err
    found = measure_texts([make_texts(2), make_texts(2, 1)], 50, with_self_bleu=False)
    assert found["self_bleu"] is found["self_bleu_interval"] is None
    assert found["distinct_1"] is not None
