"""How a student ranks the teacher's candidates, by the scores that the selection loss trains.

scipy.stats has Kendall's tau, but is no dependency, and gives NaN when the student gives all candidates one score.

Shape legend: B prompts, N candidates of a prompt, M figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.reading.cache import Cache
from student.evaluation.intervals import mean_intervals
from student.evaluation.within_memory import in_parts
from student.losses.batches import beam_batch
from student.losses.scores import candidate_scores
from student.model.architecture import num_vocabulary_rows

_NAMES = (
    "selection_accuracy", "selection_chance",
    "mean_reciprocal_rank", "mean_reciprocal_rank_chance", "kendall_tau",
)  # fmt: skip
_HAVE_INTERVAL = ("selection_accuracy", "mean_reciprocal_rank", "kendall_tau")


def rank_prompts(model: Any, cache: Cache) -> NDArray[np.float64]:
    """Return one row of figures, float64 [B, M], for each held-out prompt with at least two candidates."""
    ranked: list[list[float]] = []
    if cache.num_rows("beams", "validation"):
        length_penalty = float(cache.setting("config", "beams", "length_penalty"))

        def rank(rows: pa.RecordBatch) -> list[list[float]]:
            batch = beam_batch(rows, model.device, num_vocabulary_rows(model))
            student_BN = candidate_scores(model, batch, length_penalty).double().cpu().numpy()
            teacher_BN = batch.teacher_scores.double().cpu().numpy()
            pairs = zip(student_BN, teacher_BN, teacher_BN > -np.inf, strict=True)
            return [_ranked(student_N[is_N], teacher_N[is_N]) for student_N, teacher_N, is_N in pairs if is_N.sum() > 1]

        for rows in cache.record_batches("beams", "validation"):
            for part in in_parts(model, rows, rank):
                ranked += part
    return np.array(ranked).reshape(len(ranked), len(_NAMES))


def selection_figures(ranked_BM: NDArray[np.float64]) -> dict[str, Any]:
    """Return the figures that `evaluate_model` names, and num_selections. Without prompts the figures are None."""
    means = _means(ranked_BM)
    names = ("selection_accuracy", "selection_chance")
    return {name: means[name] for name in names} | {"num_selections": len(ranked_BM)}


def ranking_details(ranked_BM: NDArray[np.float64]) -> dict[str, Any]:
    """Return the figures that `evaluate` adds: the other means over prompts, and intervals with prompts as draws."""
    means = {name: mean for name, mean in _means(ranked_BM).items() if not name.startswith("selection")}
    places = [_NAMES.index(name) for name in _HAVE_INTERVAL]
    intervals = mean_intervals(ranked_BM[:, places])
    return means | {f"{name}_interval": ends for name, ends in zip(_HAVE_INTERVAL, intervals, strict=True)}


def reciprocal_rank(student_scores_N: NDArray[np.float64], best: int) -> float:
    """Return 1 / the rank of candidate `best` by descending score. Equal scores share their mean rank."""
    score = student_scores_N[best]
    num_equal = np.sum(student_scores_N == score) - 1
    return float(1 / (1 + np.sum(student_scores_N > score) + num_equal / 2))


def kendall_tau(student_scores_N: NDArray[np.float64], teacher_scores_N: NDArray[np.float64]) -> float:
    """Return τ_b = (C − D) / √(U_student · U_teacher) (Kendall 1945).

    C and D count the pairs of candidates that both sides order alike and differently. U counts the pairs to which one
    side gives two different scores. Return NaN when the teacher has no such pair, 0 when only the student has none.
    """
    student_NN, teacher_NN = (np.sign(s[:, None] - s) for s in (student_scores_N, teacher_scores_N))
    num_student, num_teacher = np.sum(student_NN != 0), np.sum(teacher_NN != 0)
    if num_teacher == 0:
        return float("nan")
    return float(np.sum(student_NN * teacher_NN) / np.sqrt(num_student * num_teacher)) if num_student else 0.0


def _ranked(student_scores_N: NDArray[np.float64], teacher_scores_N: NDArray[np.float64]) -> list[float]:
    num_candidates, best = len(teacher_scores_N), int(teacher_scores_N.argmax())
    return [
        float(student_scores_N.argmax() == best),
        1 / num_candidates,
        reciprocal_rank(student_scores_N, best),
        sum(1 / place for place in range(1, num_candidates + 1)) / num_candidates,
        kendall_tau(student_scores_N, teacher_scores_N),
    ]


def _means(ranked_BM: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the mean of each figure over the prompts that have it."""
    columns = {name: column[~np.isnan(column)] for name, column in zip(_NAMES, ranked_BM.T, strict=True)}
    return {name: float(values.mean()) if len(values) else None for name, values in columns.items()}
