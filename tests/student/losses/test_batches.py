"""From rows to tensors, against plain loops over the rows' own columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from storage import Cache
from student.losses import batches
from student.losses.batches import beam_batch, block_batch, sample_batch, text_batch

CPU = torch.device("cpu")


def first_batch(cache: Cache, kind: str, split: str = "train") -> pa.RecordBatch:
    return next(iter(cache.record_batches(kind, split)))


def naive_blocks(rows: list[dict[str, Any]]) -> tuple[list[list[int]], list[list[bool]], list[dict[str, Any]]]:
    """Positions, masks, and one record per valid target in row-major order."""
    positions, masks, targets = [], [], []
    for row in rows:
        place = [(segment, i) for segment, length in enumerate(row["segment_lengths"]) for i in range(length)]
        ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
        positions.append([i for _, i in place[:-1]])
        masks.append([place[t][0] == place[t + 1][0] for t in range(len(place) - 1)])
        for t, is_valid in enumerate(masks[-1]):
            head = [next(ids) for _ in range(row["head_size"][t])]
            tail = [next(ids) for _ in range(row["tail_size"][t])]
            head_logprobs = [next(logprobs) for _ in head]
            if is_valid:
                scalars = {name: row[name][t] for name in ("tail_logprob", "entropy", "label_logprob")}
                targets.append(
                    scalars
                    | {
                        "head": head,
                        "head_logprobs": head_logprobs,
                        "tail": tail,
                        "label": row["input_ids"][t + 1],
                        "tempered": row["tail_logmass_at_2"][t],
                    }
                )
            else:
                assert not head
                assert not tail
    return positions, masks, targets


@pytest.mark.parametrize("kind", ["sampled", "bucketed"])
@pytest.mark.parametrize("part", [slice(0, 16), slice(3, 8), slice(7, 8)])
def test_blocks_equal_the_naive_reading_of_their_rows(request: pytest.FixtureRequest, kind: str, part: slice) -> None:
    cache: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    rows = first_batch(cache, "soft_targets").slice(part.start, part.stop - part.start)
    found = block_batch(rows, tail_weight=0.05, temperature=2.0, device=CPU)
    plain = rows.to_pylist()
    positions, masks, targets = naive_blocks(plain)
    assert found.input_ids.tolist() == [row["input_ids"][:-1] for row in plain]
    assert found.position_ids.tolist() == positions
    assert found.is_valid.tolist() == masks
    assert found.input_ids.dtype == found.position_ids.dtype == torch.int64
    assert len(found.targets) == len(targets) == int(found.is_valid.sum())
    sparse = found.targets
    for p, target in enumerate(targets):
        assert sparse.head_ids[p][sparse.is_head[p]].tolist() == target["head"]
        assert sparse.head_logprobs[p][sparse.is_head[p]].tolist() == target["head_logprobs"]
        assert sparse.tail_ids[p][sparse.is_drawn[p]].tolist() == target["tail"]
        assert sparse.label_ids[p] == target["label"]
        assert sparse.tail_logprob[p] == target["tail_logprob"]
        assert sparse.tempered_tail_logmass[p] == target["tempered"]
        assert found.entropy[p] == target["entropy"]
        assert found.label_logprob[p] == target["label_logprob"]
    assert sparse.tail_weight == 0.05
    assert (kind == "sampled") == any(target["tail"] for target in targets)


def test_the_label_of_a_target_is_the_next_token(cache: Cache) -> None:
    rows = first_batch(cache, "soft_targets")
    found = block_batch(rows, tail_weight=0.05, temperature=1.0, device=CPU)
    whole = torch.tensor([row["input_ids"] for row in rows.to_pylist()])
    assert torch.equal(found.targets.label_ids, whole[:, 1:][found.is_valid])
    assert torch.equal(found.input_ids, whole[:, :-1])
    assert not found.is_valid.all(), "blocks pack several documents"
    # The token before a document's first is the end of the one before.
    assert torch.all(whole[:, :-1][~found.is_valid] == 256)


def test_at_temperature_1_no_tempered_mass_goes_along(cache: Cache) -> None:
    found = block_batch(first_batch(cache, "soft_targets"), tail_weight=None, temperature=1.0, device=CPU)
    assert found.targets.tempered_tail_logmass is None
    assert found.targets.tail_weight is None


def check_texts(batch: Any, sequences: list[tuple[list[int], list[int]]]) -> None:
    """Right padding, masks from lengths, labels in order."""
    longest = max(len(prompt) + len(continuation) for prompt, continuation in sequences)
    assert batch.input_ids.shape == batch.position_ids.shape == batch.is_target.shape == (len(sequences), longest - 1)
    labels = []
    for row, (prompt, continuation) in enumerate(sequences):
        whole = prompt + continuation
        kept = min(len(whole), longest - 1)
        assert batch.input_ids[row, :kept].tolist() == whole[:kept]
        assert batch.position_ids[row].tolist() == [t if t < len(whole) - 1 else -1 for t in range(longest - 1)]
        expected = [len(prompt) - 1 <= t < len(whole) - 1 for t in range(longest - 1)]
        assert batch.is_target[row].tolist() == expected
        assert [whole[t + 1] for t, is_target in enumerate(expected) if is_target] == continuation
        labels += continuation
    assert batch.label_ids.tolist() == labels


@pytest.mark.parametrize("part", [slice(0, 16), slice(5, 9), slice(2, 3)])
def test_samples_equal_the_naive_reading_of_their_rows(cache: Cache, part: slice) -> None:
    rows = first_batch(cache, "samples").slice(part.start, part.stop - part.start)
    sequences = [(row["prompt_ids"], row["completion_ids"]) for row in rows.to_pylist()]
    check_texts(sample_batch(rows, CPU), sequences)


@pytest.mark.parametrize("part", [slice(0, 16), slice(5, 9), slice(2, 3)])
def test_beams_equal_the_naive_reading_of_their_rows(cache: Cache, part: slice) -> None:
    rows = first_batch(cache, "beams").slice(part.start, part.stop - part.start)
    found = beam_batch(rows, CPU)
    sequences, owners, slots, scores = [], [], [], []
    for b, row in enumerate(rows.to_pylist()):
        ids = iter(row["candidate_ids"])
        for slot, length in enumerate(row["candidate_lengths"]):
            sequences.append((row["prompt_ids"], [next(ids) for _ in range(length)]))
            owners.append(b)
            slots.append(slot)
        scores.append(row["scores"])
    check_texts(found.texts, sequences)
    assert found.prompt_index.tolist() == owners
    assert found.slot.tolist() == slots
    assert found.lengths.tolist() == [len(continuation) for _, continuation in sequences]
    most = max(map(len, scores))
    expected = [[*row, *[-math.inf] * (most - len(row))] for row in scores]
    torch.testing.assert_close(found.teacher_scores, torch.tensor(expected), rtol=0, atol=0)


def test_one_prompt_with_continuations_of_many_lengths() -> None:
    check_texts(
        text_batch([7, 8, 9], [[1], [2, 3, 4, 5], [6, 6]], CPU),
        [([7, 8, 9], continuation) for continuation in ([1], [2, 3, 4, 5], [6, 6])],
    )
    check_texts(text_batch([7], [[0], [0]], CPU), [([7], [0]), ([7], [0])])


def test_every_float16_becomes_the_same_float32_in_this_thread_alone() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(batches._float32(every), every.astype(np.float32))
    # From 2^15 elements on, PyTorch shares a conversion among threads.
    assert batches._SERIAL_ELEMENTS < 1 << 15
