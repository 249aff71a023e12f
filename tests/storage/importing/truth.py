"""What an imported cache holds, target by target, and what it should hold: plain float64 loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from storage import Cache
from storage.rows import soft_targets
from tests.storage.importing.dumps import MadeUpTeacher

# A float16 keeps 11 bits of a number.
FLOAT16 = 2.0**-11


def stored(cache: Cache, split: str = "train") -> list[dict[str, Any]]:
    """Every segment with a valid target: its ids, and per target None or what is stored."""
    found = []
    for batch in cache.record_batches("soft_targets", split):
        rows = soft_targets.decode(batch)
        ids, logprobs = iter(rows.ids.tolist()), iter(rows.logprobs.tolist())
        for row, lengths in enumerate(rows.segment_lengths):
            targets: list[dict[str, Any] | None] = []
            for t in range(rows.head_size.shape[1]):
                head = {next(ids): next(logprobs) for _ in range(rows.head_size[row, t])}
                label = None if rows.label_logprob is None else float(rows.label_logprob[row, t])
                is_valid = rows.is_valid_target[row, t]
                targets.append(
                    {"head": head, "tail": float(rows.tail_logprob[row, t]), "label": label} if is_valid else None
                )
            start = 0
            for length in lengths.tolist():
                if any(piece := targets[start : start + length - 1]):
                    found.append({"ids": rows.input_ids[row, start : start + length].tolist(), "targets": piece})
                start += length
    return found


def check_text(
    found: dict[str, Any], teacher: MadeUpTeacher, ids: Sequence[int], top_k: int, *, with_label: bool
) -> None:
    """Every target of a text holds the teacher's top_k and perhaps the label, and the rest of the mass as its tail."""
    assert found["ids"] == list(ids)
    assert len(found["targets"]) == len(ids) - 1
    for t, target in enumerate(found["targets"]):
        if target is not None:
            check_target(target, teacher, ids[t], ids[t + 1], top_k, with_label=with_label)


def check_target(
    target: dict[str, Any], teacher: MadeUpTeacher, previous: int, label: int, top_k: int, *, with_label: bool
) -> None:
    p = teacher.logprobs(previous)
    wanted = set(teacher.top(previous, top_k).tolist()) | ({label} if with_label else set())
    assert set(target["head"]) == wanted
    for token_id, logprob in target["head"].items():
        assert math.isclose(logprob, p[token_id], rel_tol=FLOAT16)
    tail = math.log(1 - math.fsum(math.exp(p[i]) for i in wanted))
    assert math.isclose(target["tail"], tail, rel_tol=2 * FLOAT16)
    if target["label"] is not None:
        assert math.isclose(target["label"], p[label], rel_tol=FLOAT16)


def lists_of(values: Iterable[Any]) -> list[Any]:
    return [np.asarray(value).tolist() for value in values]
