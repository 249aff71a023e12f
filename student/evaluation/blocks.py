"""One pass over the blocks of the validation split, and the figures that are sums over blocks.

Shape legend: B blocks, P valid positions, M sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from storage.progress import Progress
from storage.reading.cache import Cache
from student.evaluation.intervals import ratio_intervals
from student.evaluation.positions import PositionMeasures, measure_positions
from student.evaluation.ratios import ratio_with_error
from student.evaluation.within_memory import in_parts
from student.losses.batches import BlockBatch, block_batch
from student.losses.targets import soft_target_settings
from student.model.architecture import num_vocabulary_rows

_NUM_TARGETS, _LABEL_NLL, _NUM_TEACHER, _TEACHER_NLL, _KL, _NUM_TOP1, _FIRST_HIT, _ANY_HIT, _LOST_MASS = range(9)


def tail_weight_at_one(cache: Cache) -> float | None:
    """Return the probability that each sampled tail entry stands for; None without a tail sampled at temperature 1.

    None, too, when the cache lacks the entropy, without which the cross-entropy over such a tail is no KL.
    """
    settings = soft_target_settings(cache)
    is_of_use = settings.temperatures[0] == 1.0 and "entropy" not in cache.identity.unknown_columns
    return settings.tail_weight if is_of_use else None


def measured_batches(
    model: Any, cache: Cache, *, num_best: int, batch_blocks: int, max_blocks: int | None, quiet: bool
) -> Iterator[tuple[BlockBatch, PositionMeasures]]:
    """Yield the blocks of the validation split in order, batch by batch, with their measures.

    max_blocks: most blocks in all, None for the whole split.
    """
    tail_weight = tail_weight_at_one(cache)
    num_held = cache.num_rows("soft_targets", "validation")
    num_blocks = num_held if max_blocks is None else min(num_held, max_blocks)

    def measure(rows: pa.RecordBatch) -> tuple[BlockBatch, PositionMeasures]:
        batch = block_batch(
            rows,
            tail_weight=tail_weight,
            temperature=1.0,
            device=model.device,
            num_rows=num_vocabulary_rows(model),
        )
        return batch, measure_positions(model, batch, num_best)

    with Progress(num_blocks, "evaluate", "blocks", quiet=quiet) as bar:
        for rows in _row_batches(cache, batch_blocks, num_blocks):
            yield from in_parts(model, rows, measure)
            bar.update(rows.num_rows)


def block_sums(batch: BlockBatch, found: PositionMeasures) -> NDArray[np.float64]:
    """Return sums over the positions of each block, float64 [B, M]."""
    ones_P, teacher_logprob_P = torch.ones_like(found.kl), batch.label_logprob
    columns_MP = [
        ones_P,
        found.label_nll,
        ones_P * (teacher_logprob_P is not None),
        torch.zeros_like(ones_P) if teacher_logprob_P is None else -teacher_logprob_P,
        found.kl,
        found.has_top1.float(),
        found.hits[:, 0].float(),
        found.hits.any(1).float(),
        batch.lost_mass,
    ]
    values_PM = torch.stack(columns_MP, dim=1).cpu().double()
    sums_BM = torch.zeros(len(batch.is_valid), len(columns_MP), dtype=torch.float64)
    sums_BM.index_add_(0, block_of_position(batch), values_PM)
    found_BM: NDArray[np.float64] = sums_BM.numpy()
    return found_BM


def joined_sums(parts: list[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Join the sums [B, M] of all batches. Return None without a valid target: there is nothing to divide by."""
    sums_BM = np.concatenate(parts)
    return sums_BM if sums_BM[:, _NUM_TARGETS].any() else None


def block_of_position(batch: BlockBatch) -> torch.Tensor:
    """Return for each valid position [P] the index in the batch of its block, int64 on the CPU."""
    return batch.is_valid.nonzero()[:, 0].cpu()


def block_figures(sums_BM: NDArray[np.float64] | None, tail_weight: float | None) -> dict[str, Any]:
    """Return the figures that `evaluate_model` names. All are None when the sums are None.

    teacher_perplexity is None, too, when the cache lacks the teacher's probability of the next token.
    """
    names = ("perplexity", "teacher_perplexity", "kl_nats", "kl_standard_error", "kl_is_lower_bound", "top1_agreement")
    if sums_BM is None:
        return dict.fromkeys((*names, "num_targets"), None)
    totals = sums_BM.sum(0).tolist()
    num_targets, num_teacher, num_top1 = totals[_NUM_TARGETS], totals[_NUM_TEACHER], totals[_NUM_TOP1]
    mean_kl, standard_error = ratio_with_error(*torch.from_numpy(sums_BM[:, [_KL, _NUM_TARGETS]]).unbind(1))
    return {
        "perplexity": _perplexity(totals[_LABEL_NLL] / num_targets),
        "teacher_perplexity": _perplexity(totals[_TEACHER_NLL] / num_teacher) if num_teacher else None,
        "kl_nats": mean_kl,
        "kl_standard_error": standard_error,
        "kl_is_lower_bound": tail_weight is None,
        "top1_agreement": totals[_FIRST_HIT] / num_top1 if num_top1 else None,
        "num_targets": int(num_targets),
    } | ({"lost_mass": totals[_LOST_MASS] / num_targets} if totals[_LOST_MASS] else {})


def block_details(sums_BM: NDArray[np.float64] | None) -> dict[str, Any]:
    """Return the figures that `evaluate` adds: num_blocks, top5_agreement, and intervals with blocks as the draws.

    top5_agreement assumes that the sums were measured with five hits per position.
    """
    over = {
        "perplexity": (_LABEL_NLL, _NUM_TARGETS),
        "teacher_perplexity": (_TEACHER_NLL, _NUM_TEACHER),
        "kl_nats": (_KL, _NUM_TARGETS),
        "top1_agreement": (_FIRST_HIT, _NUM_TOP1),
        "top5_agreement": (_ANY_HIT, _NUM_TOP1),
    }
    names = [f"{name}_interval" for name in over]
    if sums_BM is None:
        return {"num_blocks": 0, "top5_agreement": None} | dict.fromkeys(names, None)
    num_top1 = float(sums_BM[:, _NUM_TOP1].sum())
    columns, counts = zip(*over.values(), strict=True)
    intervals = dict(zip(names, ratio_intervals(sums_BM[:, columns], sums_BM[:, counts]), strict=True))
    for name in ("perplexity_interval", "teacher_perplexity_interval"):
        ends = intervals[name]
        intervals[name] = None if ends is None else [_perplexity(end) for end in ends]
    top5 = float(sums_BM[:, _ANY_HIT].sum()) / num_top1 if num_top1 else None
    return {"num_blocks": len(sums_BM), "top5_agreement": top5, **intervals}


def _perplexity(mean_nats: float) -> float:
    try:
        return math.exp(mean_nats)
    except OverflowError:
        return math.inf


def _row_batches(cache: Cache, batch_blocks: int, num_left: int) -> Iterator[pa.RecordBatch]:
    for stored in cache.record_batches("soft_targets", "validation"):
        wanted = stored.slice(0, num_left)
        for start in range(0, wanted.num_rows, batch_blocks):
            yield wanted.slice(start, batch_blocks)
        num_left -= wanted.num_rows
        if not num_left:
            return
