"""Measures of a student by loops over documents with the whole vocabulary, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from storage import Cache


@torch.inference_mode()
def predictions(model: Any, row: dict[str, Any]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(target, label, log-probabilities) of every valid target, one document at a time, in float64."""
    is_wanted, start = row.get("is_wanted", [True] * len(row["head_size"])), 0
    for length in row["segment_lengths"]:
        ids = row["input_ids"][start : start + length]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
        logprobs = torch.log_softmax(logits, dim=1).numpy()
        yield from ((start + i, ids[i + 1], logprobs[i]) for i in range(length - 1) if is_wanted[start + i])
        start += length


def validation_rows(cache: Cache, kind: str = "soft_targets") -> list[dict[str, Any]]:
    return [row for batch in cache.record_batches(kind, "validation") for row in batch.to_pylist()]


def heads_of(row: dict[str, Any]) -> list[tuple[list[int], np.ndarray, list[int]]]:
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    entries = []
    for head_size, tail_size in zip(row["head_size"], row["tail_size"], strict=True):
        head = [next(ids) for _ in range(head_size)]
        entries.append((head, np.array([next(logprobs) for _ in head]), [next(ids) for _ in range(tail_size)]))
    return entries


def naive_measures(model: Any, cache: Cache, *, tail_weight: float | None) -> dict[str, float]:
    nll, teacher_nll, kl, agrees = [], [], [], []
    ends = []
    for row in validation_rows(cache):
        entries = heads_of(row)
        for t, label, logprobs in predictions(model, row):
            head, head_logprobs, tail = entries[t]
            nll.append(-logprobs[label])
            teacher_nll.append(-row["label_logprob"][t])
            rest = np.setdiff1d(np.arange(len(logprobs)), head)
            if tail_weight is None:
                p = np.exp([*head_logprobs, row["tail_logprob"][t]])
                p /= p.sum()
                log_q = np.append(logprobs[head], np.log(np.exp(logprobs[rest]).sum()) if len(rest) else -np.inf)
                used = p > 0
                kl.append((p[used] * (np.log(p[used]) - log_q[used])).sum())
            else:
                cross = -(np.exp(head_logprobs) * logprobs[head]).sum() - tail_weight * logprobs[tail].sum()
                kl.append(cross - row["entropy"][t])
            best = [i for i, x in zip(head, head_logprobs, strict=True) if x == head_logprobs.max()]
            agrees.append(logprobs.argmax() in best)
        ends.append(len(kl))
    blocks = [block for block in np.split(np.array(kl) - np.mean(kl), ends[:-1]) if len(block)]
    spread = sum(block.sum() ** 2 for block in blocks) * len(blocks) / (len(blocks) - 1)
    return {
        "perplexity": math.exp(np.mean(nll)),
        "teacher_perplexity": math.exp(np.mean(teacher_nll)),
        "kl_nats": float(np.mean(kl)),
        "kl_standard_error": math.sqrt(spread) / len(kl),
        "top1_agreement": float(np.mean(agrees)),
        "num_targets": len(nll),
    }


def naive_positions(model: Any, cache: Cache, *, tail_weight: float | None) -> list[dict[str, Any]]:
    """What is to be known about every valid target."""
    positions = []
    for block, row in enumerate(validation_rows(cache)):
        entries = heads_of(row)
        starts = np.cumsum([0, *row["segment_lengths"]])
        for t, label, logprobs in predictions(model, row):
            head, head_logprobs, tail = entries[t]
            rest = np.setdiff1d(np.arange(len(logprobs)), head)
            if tail_weight is None:
                p = np.exp([*head_logprobs, row["tail_logprob"][t]])
                p /= p.sum()
                log_q = np.append(logprobs[head], np.log(np.exp(logprobs[rest]).sum()))
                kl = (p[p > 0] * (np.log(p[p > 0]) - log_q[p > 0])).sum()
            else:
                kl = -(np.exp(head_logprobs) * logprobs[head]).sum() - tail_weight * logprobs[tail].sum()
                kl -= row["entropy"][t]
            best = [i for i, x in zip(head, head_logprobs, strict=True) if x == head_logprobs.max()]
            positions.append(
                {
                    "block": block,
                    "position": t - max(start for start in starts if start <= t),
                    "entropy": float(row["entropy"][t]),
                    "kl": kl,
                    "in_top5": bool(set(best) & set(np.argsort(-logprobs)[:5])),
                    "student": (math.exp(logprobs.max()), float(logprobs.argmax() == label)),
                    "teacher": (math.exp(head_logprobs.max()), (label in best) / len(best)),
                }
            )
    return positions


def mean_with_error(positions: list[dict[str, Any]]) -> tuple[float, float | None]:
    mean = np.mean([position["kl"] for position in positions])
    blocks = {position["block"]: 0.0 for position in positions}
    for position in positions:
        blocks[position["block"]] += position["kl"] - mean
    if len(blocks) < 2:
        return mean, None
    spread = sum(total**2 for total in blocks.values()) * len(blocks) / (len(blocks) - 1)
    return mean, math.sqrt(spread) / len(positions)


def full_kl(teacher: Any, student: Any, cache: Cache) -> float:
    values = []
    for row in validation_rows(cache):
        for (_, _, p), (_, _, q) in zip(predictions(teacher, row), predictions(student, row), strict=True):
            values.append((np.exp(p) * (p - q)).sum())
    return float(np.mean(values))
