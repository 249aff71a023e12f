"""How varied texts of student and teacher are. A text is a list of token ids without the end-of-text token."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from storage.reading.cache import Cache
from student.evaluation.continuations import SamplingSettings, choose_prompts, continue_prompts, without_end
from student.evaluation.intervals import jackknife_interval, ratio_intervals

Text = list[int]
Share = Callable[[list[Text]], float | None]

_REPETITION_NGRAM = 4
_MOST_SELF_BLEU_TEXTS = 64


def measure_generation(
    model: Any, cache: Cache, settings: SamplingSettings, *, num_prompts: int, quiet: bool
) -> dict[str, Any]:
    """Return the figures of "student" and "teacher" (see measure_texts), from equally many texts for each prompt."""
    prompts = choose_prompts(cache, num_prompts)
    rows = [row for of_prompt in prompts for row in of_prompt]
    continuations = iter(continue_prompts(model, rows, settings, quiet=quiet))
    students = [[next(continuations) for _ in of_prompt] for of_prompt in prompts]
    teachers = [[row.completion_ids for row in of_prompt] for of_prompt in prompts]
    with_self_bleu = has_sacrebleu()
    return {
        side: measure_texts(
            [[without_end(ids, settings.end_ids).tolist() for ids in of_prompt] for of_prompt in texts],
            cache.identity.vocab_size,
            with_self_bleu=with_self_bleu,
        )
        for side, texts in (("student", students), ("teacher", teachers))
    }


def measure_texts(prompts: list[list[Text]], vocab_size: int, *, with_self_bleu: bool) -> dict[str, Any]:
    """Return figures of the texts of some prompts, with intervals that have prompts as the draws.

    num_texts has no interval. distinct_1, distinct_2, distinct_3, vocabulary_coverage and self_bleu are figures of all
    texts together, with a jackknife interval. They depend on the number of texts, so compare them only between equal
    numbers of texts. repetition_rate and mean_length_tokens are means over texts, with a bootstrap interval. A figure
    is None when the texts are too short or too few.
    """
    figures: dict[str, Any] = {"num_texts": len(_flat(prompts))}
    shares: dict[str, Share] = {
        "distinct_1": lambda texts: distinct(texts, 1),
        "distinct_2": lambda texts: distinct(texts, 2),
        "distinct_3": lambda texts: distinct(texts, 3),
        "vocabulary_coverage": lambda texts: vocabulary_coverage(texts, vocab_size),
    }
    for name, share in shares.items():
        figures |= _share_figures(name, share, prompts)
    bleu_prompts = _first_prompts(prompts, _MOST_SELF_BLEU_TEXTS) if with_self_bleu else []
    figures |= _share_figures("self_bleu", self_bleu, bleu_prompts)
    repetitions = [[r for text in texts if (r := repetition(text)) is not None] for texts in prompts]
    figures |= _mean_figures("repetition_rate", repetitions)
    return figures | _mean_figures("mean_length_tokens", [[float(len(text)) for text in texts] for texts in prompts])


def distinct(texts: list[Text], n: int) -> float | None:
    """Return different n-grams / n-grams of all texts together: distinct-n (Li et al. 2016 divide by the tokens)."""
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def repetition(text: Text) -> float | None:
    """Return 1 − different 4-grams / 4-grams of one text: seq-rep-4 of Welleck et al. 2020, section 6."""
    share = distinct([text], _REPETITION_NGRAM)
    return None if share is None else 1.0 - share


def vocabulary_coverage(texts: list[Text], vocab_size: int) -> float | None:
    """Return the share of the vocabulary's ids that occur in the texts."""
    return len({token for text in texts for token in text}) / vocab_size if any(texts) else None


def self_bleu(texts: list[Text]) -> float | None:
    """Return the mean of each text's BLEU-4 with all other texts as references (Zhu et al. 2018), from 0 to 1.

    This is sacrebleu's sentence score over token ids, with exponential smoothing and without the n-gram orders that a
    short text does not have. Empty texts are left out. Needs sacrebleu.
    """
    sentences = [" ".join(map(str, text)) for text in texts if text]
    if len(sentences) < 2:
        return None
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize="none", effective_order=True)
    scores = [
        bleu.sentence_score(sentence, sentences[:place] + sentences[place + 1 :]).score
        for place, sentence in enumerate(sentences)
    ]
    return float(np.mean(scores)) / 100


def has_sacrebleu() -> bool:
    """Whether sacrebleu is installed. If it is not, print a line on standard error that says how to install it."""
    is_installed = importlib.util.find_spec("sacrebleu") is not None
    if not is_installed:
        print("self_bleu is left out: it needs sacrebleu; get it with: pip install sacrebleu", file=sys.stderr)
    return is_installed


def _share_figures(name: str, share: Share, prompts: list[list[Text]]) -> dict[str, Any]:
    interval = jackknife_interval(lambda some: share(_flat(some)), prompts)
    return {name: share(_flat(prompts)), f"{name}_interval": interval}


def _mean_figures(name: str, values: list[list[float]]) -> dict[str, Any]:
    """Return the mean over texts, and its interval. values: for each prompt, the values of its texts."""
    sums, counts = np.array([[sum(of_prompt), len(of_prompt)] for of_prompt in values], dtype=np.float64).T
    mean = float(sums.sum() / counts.sum()) if counts.any() else None
    return {name: mean, f"{name}_interval": ratio_intervals(sums[:, None], counts[:, None])[0]}


def _first_prompts(prompts: list[list[Text]], most_texts: int) -> list[list[Text]]:
    """Return the first prompts that have at most `most_texts` texts together, but at least two prompts."""
    totals = itertools.accumulate(len(texts) for texts in prompts)
    return prompts[: max(2, sum(total <= most_texts for total in totals))]


def _flat(prompts: list[list[Text]]) -> list[Text]:
    return [text for texts in prompts for text in texts]


def _ngrams(text: Text, n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(text[start:] for start in range(n)), strict=False)
