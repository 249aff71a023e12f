"""What speculative decoding with this student would save, from the texts that the teacher drew.

Speculative decoding (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2) drafts a token x with the
student's probability s(x) and accepts it with probability min(1, p(x) / s(x)), where p is the teacher's. In place of a
rejected draft it writes a token drawn from max(0, p − s). So it writes x with probability p(x), and an accepted x with
min(p(x), s(x)). Given what stands in the text, each drafted token was accepted with probability

    a = min(1, s(x) / p(x)),

independently of the others. Its texts have the teacher's law, as have the samples of a cache that were drawn at
temperature 1 from the whole vocabulary. So sums over these samples are unbiased, and nobody decodes anything. The
figures are ratios of such sums.

The cache rounds log p to float16, which moves it by 2^−12 |log p| on average, at most. Where s = p, min(1, ·) keeps the
moves down and loses the moves up: half of that. So a student that equals its teacher gets 1 − 2^−13 E|log p| or more,
0.9996 for texts of 3.3 nats a token. Where s and p differ by more, moves of both signs cancel up to their squares.

Shape legend: N texts, P tokens of texts, T tokens of the longest text, D prompts, F figures.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from storage.progress import Progress
from storage.reading.cache import Cache
from storage.rows.samples import SampleRow, decode
from student.errors import BrokenStudentError
from student.evaluation.continuations import SamplingSettings, prompt_key
from student.evaluation.intervals import ratio_intervals
from student.evaluation.within_memory import in_parts
from student.losses.batches import sample_batch
from student.losses.scores import hidden_at
from student.losses.token_logprobs import token_logprobs
from student.model.architecture import num_vocabulary_rows, output_head

DRAFT_TOKENS = 4
# What is summed over the texts of a prompt: of each figure the numerator, then of each the denominator.
_FIGURES = ("acceptance", "tokens_per_teacher_step")


@torch.inference_mode()
def measure_acceptance(model: Any, cache: Cache, *, quiet: bool) -> dict[str, Any]:
    """Return the figures of speculative decoding, from all texts of the validation split, with prompts as the draws.

    - acceptance: mean of a over the tokens of texts, ends of text included: α of Leviathan et al., corollary 3.6
    - tokens_per_teacher_step: tokens that one pass of the teacher gives with drafts of 4 tokens, from 1 to 5 (see
      draft_steps). None, too, when no text may be as long as a draft.
    - num_sampled_tokens: tokens of texts, 0 when they were not measured
    - no_acceptance_because: why these figures are None, although there are texts

    Raise BrokenStudentError when logits are no distribution, MissingRowError, and RecordError when the cache does not
    say how texts were drawn.
    """
    sums_DF, counts_DF = np.zeros((2, 0, len(_FIGURES)))
    reason = None
    if cache.num_rows("samples", "validation"):
        settings = SamplingSettings.of_cache(cache)
        reason = _why_not(settings)
        if reason is None:
            sums_DF, counts_DF = _sums_of_prompts(model, cache, settings.max_new_tokens, quiet)
    totals, counts = sums_DF.sum(0), counts_DF.sum(0)
    found: dict[str, Any] = {"num_sampled_tokens": int(counts[0]), "no_acceptance_because": reason}
    for place, (name, ends) in enumerate(zip(_FIGURES, ratio_intervals(sums_DF, counts_DF), strict=True)):
        found[name] = float(totals[place] / counts[place]) if counts[place] else None
        found[f"{name}_interval"] = ends
    return found


def draft_steps(
    acceptance_NT: NDArray[np.float64],
    lengths_N: NDArray[np.int64],
    is_cut_N: NDArray[np.bool_],
    max_new_tokens: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how many tokens [N] the teacher's steps write in each text, and how many steps [N], both expected.

    A step drafts 4 tokens and writes those before the first rejected one, and one more of the teacher's: in place of
    the rejected draft, or after the last. The next step begins behind them. Where steps begin is thus a Markov chain
    along the text, and no acceptance need be independent of the text, as (1 − α^5) / (1 − α) assumes (equation 1).

    A text that ended ends its last step. A text that was cut does not, so a step counts only when it begins so early
    that its 4 drafts are inside max_new_tokens, whatever the text. Σ tokens / Σ steps over texts is the figure.

    acceptance_NT: a of each token, 0 behind a text; lengths_N: tokens of each text; is_cut_N: whether max_new_tokens
    ended it.
    """
    num_texts, longest = acceptance_NT.shape
    acceptance_NT = np.pad(acceptance_NT, ((0, 0), (0, DRAFT_TOKENS)))
    begins_NT = np.zeros((num_texts, longest + DRAFT_TOKENS + 1))
    begins_NT[:, 0] = 1.0
    last_starts_N = np.minimum(lengths_N - 1, max_new_tokens - DRAFT_TOKENS)
    ends_N = lengths_N + is_cut_N  # behind a cut the teacher would have gone on
    tokens_N, steps_N = np.zeros((2, num_texts))
    for start in range(longest):
        goes_on_N = begins_NT[:, start] * (start <= last_starts_N)
        steps_N += goes_on_N
        for place in range(start, start + DRAFT_TOKENS):
            tokens_N += goes_on_N * (place < ends_N)
            accepted_N = goes_on_N * acceptance_NT[:, place]
            begins_NT[:, place + 1] += goes_on_N - accepted_N
            goes_on_N = accepted_N
        tokens_N += goes_on_N * (start + DRAFT_TOKENS < ends_N)
        begins_NT[:, start + DRAFT_TOKENS + 1] += goes_on_N
    return tokens_N, steps_N


def _why_not(settings: SamplingSettings) -> str | None:
    """Return why texts drawn with these settings tell nothing of the teacher's own distribution; None if they do."""
    if settings.temperature == settings.top_p == 1.0:
        return None
    return (
        f"the cache's texts were drawn at temperature {settings.temperature:g} and top-p {settings.top_p:g}; "
        "acceptance needs texts drawn at temperature 1 and top-p 1"
    )


def _sums_of_prompts(
    model: Any, cache: Cache, max_new_tokens: int, quiet: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return numerators and denominators [D, F] of the figures, summed over the texts of each prompt."""

    def measure(part: pa.RecordBatch) -> list[tuple[tuple[int, bytes], NDArray[np.float64]]]:
        rows = decode(part)
        return list(zip(map(prompt_key, rows), _of_texts(model, part, rows, max_new_tokens), strict=True))

    measured = []
    with Progress(cache.num_rows("samples", "validation"), "accept", "texts", quiet=quiet) as bar:
        for batch in cache.record_batches("samples", "validation"):
            for part in in_parts(model, batch, measure):
                measured += part
            bar.update(batch.num_rows)
    groups = itertools.groupby(measured, key=lambda pair: pair[0])
    sums_D2F = np.array([sum(values for _, values in group) for _, group in groups])
    return sums_D2F[:, 0], sums_D2F[:, 1]


def _of_texts(model: Any, part: pa.RecordBatch, rows: list[SampleRow], max_new_tokens: int) -> NDArray[np.float64]:
    """Return numerators and denominators of the figures of each text, float64 [N, 2, F]."""
    batch = sample_batch(part, model.device, num_vocabulary_rows(model))
    hidden_PD = hidden_at(model, batch, batch.is_target)
    student_P = token_logprobs(hidden_PD, output_head(model), batch.label_ids).double().cpu().numpy()
    if np.isnan(student_P).any():
        raise BrokenStudentError(model.name_or_path)
    teacher_P = np.concatenate([row.completion_logprobs for row in rows]).astype(np.float64)
    lengths_N = np.array([len(row.completion_ids) for row in rows])
    is_token_NT = np.arange(lengths_N.max()) < lengths_N[:, None]
    acceptance_NT = np.zeros(is_token_NT.shape)
    acceptance_NT[is_token_NT] = np.exp(np.minimum(student_P - teacher_P, 0.0))
    is_cut_N = np.array([row.finish_reason == "length" for row in rows])
    tokens_N, steps_N = draft_steps(acceptance_NT, lengths_N, is_cut_N, max_new_tokens)
    return np.stack([acceptance_NT.sum(1), tokens_N, lengths_N, steps_N], axis=1).reshape(-1, 2, len(_FIGURES))
