"""Soft targets in a cache against the teacher run on every document alone, by transformers, in float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline import SoftTargetsConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.token_store import TokenWriter
from pipeline.errors import TeacherOutputError
from pipeline.producers.soft_targets import SoftTargetsProducer
from storage import Cache
from storage.rows import soft_targets

# Float16 rounds a number by at most 2^-11 of itself, six mantissa bits a logprob by 2^-7 more; what is left
# are the teacher's own float32 errors.
HEAD_ROUNDING, SCALAR_ROUNDING, FLOAT32_NATS = 2**-7 + 2**-11, 2**-11, 5e-4


@torch.inference_mode()
def documents_alone(model: Any, input_ids: list[int], segment_lengths: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(target, its log-probabilities [V]) for every valid target of a block."""
    start = 0
    for length in segment_lengths:
        ids = torch.tensor([input_ids[start : start + length]])
        logprobs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].double(), dim=1).numpy()
        yield from ((start + i, logprobs[i]) for i in range(length - 1))
        start += length


def entries_of(row: dict[str, Any]) -> Iterator[tuple[list[int], list[float], list[int]]]:
    """Head ids, head logprobs and tail ids of each target."""
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    for head_size, tail_size in zip(row["head_size"], row["tail_size"], strict=True):
        head = [next(ids) for _ in range(head_size)]
        yield head, [next(logprobs) for _ in range(head_size)], [next(ids) for _ in range(tail_size)]


@pytest.fixture(params=["sampled", "bucketed"])
def some_rows(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    cache: Cache = request.getfixturevalue("cache" if request.param == "sampled" else "bucketed_cache")
    batch = next(iter(cache.record_batches("soft_targets", "validation")))
    return request.param, batch.to_pylist()


def test_every_stored_number_is_that_of_the_document_alone(
    some_rows: tuple[str, list[dict[str, Any]]], teacher_model: Any
) -> None:
    kind, rows = some_rows
    top_k = 4 if kind == "sampled" else 8
    num_packed = 0
    for row in rows:
        entries = list(entries_of(row))
        num_packed += len(row["segment_lengths"]) > 1
        valid = set()
        for t, logprobs in documents_alone(teacher_model, row["input_ids"], row["segment_lengths"]):
            valid.add(t)
            head, head_logprobs, tail = entries[t]
            probs = np.exp(logprobs)
            by_rank = np.argsort(-logprobs, kind="stable")
            wanted = set(by_rank[:top_k].tolist())
            if kind == "sampled":
                wanted |= set(np.flatnonzero(probs >= 0.05).tolist())
            assert set(head) == wanted
            rest = np.setdiff1d(np.arange(257), head)

            def close(found: float, truth: float, rounding: float = SCALAR_ROUNDING) -> bool:
                return abs(found - truth) <= rounding * abs(truth) * 1.001 + FLOAT32_NATS

            assert all(
                close(found, truth, HEAD_ROUNDING) for found, truth in zip(head_logprobs, logprobs[head], strict=True)
            )
            assert close(row["tail_logprob"][t], np.log(probs[rest].sum()), HEAD_ROUNDING)
            assert close(row["tail_logmass_at_2"][t], np.log(np.sqrt(probs[rest]).sum()))
            assert close(row["entropy"][t], -(probs * logprobs).sum())
            assert close(row["label_logprob"][t], logprobs[row["input_ids"][t + 1]], 2**-6)
            num_draws = probs[rest].sum() / 0.05 if kind == "sampled" else 0
            assert np.floor(num_draws - 1e-3) <= len(tail) <= np.ceil(num_draws + 1e-3)
            assert set(tail) <= set(rest.tolist())
        for t in set(range(32)) - valid:
            assert entries[t] == ([], [], [])
            assert row["label_logprob"][t] == row["entropy"][t] == row["tail_logprob"][t] == 0
    assert num_packed >= 3


@pytest.fixture
def make_producer(
    tiny_teacher: Callable[..., Any], helpers: ModuleType, tmp_path: Path
) -> Callable[..., SoftTargetsProducer]:
    """A producer over 41 blocks of 8 + 1 tokens."""

    def make(batch_tokens: int = 64, **changes: object) -> SoftTargetsProducer:
        settings = SoftTargetsConfig(**({"top_k": 2, "tail_weight": 0.05, "temperatures": (1.0, 2.0)} | changes))
        config = helpers.tiny_config(
            tmp_path, tmp_path, tmp_path, block_size=8, batch_tokens=batch_tokens, soft_targets=settings
        )
        rng = np.random.default_rng(0)
        writer = TokenWriter(tmp_path / "store", np.uint16)
        while writer.num_tokens < 9 * 41:
            writer.append(rng.integers(0, 30, rng.integers(2, 20)))
            writer.end_document()
        blocks = {"train": Blocks(writer.close(), 8)}
        schema = soft_targets.schema(30, 8, settings.temperatures)
        return SoftTargetsProducer(tiny_teacher(30), config, blocks, schema)

    return make


def rows_of(producer: SoftTargetsProducer, start: int, stop: int) -> list[dict[str, Any]]:
    return pa.Table.from_batches(producer.record_batches("train", start, stop, 16)).to_pylist()


@pytest.mark.parametrize("rows_per_pass", [1, 5, 12, 16, 20, 40, 1000])
@pytest.mark.parametrize(("start", "stop"), [(0, 41), (16, 32), (32, 41), (3, 20), (40, 41)])
def test_record_batches_are_full_but_for_the_last(
    make_producer: Callable[..., SoftTargetsProducer], rows_per_pass: int, start: int, stop: int
) -> None:
    batches = list(make_producer(batch_tokens=8 * rows_per_pass).record_batches("train", start, stop, 16))
    sizes = [batch.num_rows for batch in batches]
    assert all(size == 16 for size in sizes[:-1])
    assert [row_id for batch in batches for row_id in batch["row_id"].to_pylist()] == list(range(start, stop))


def test_a_plan_runs_the_teacher_in_passes_of_the_runs_size(
    make_producer: Callable[..., SoftTargetsProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the memory of --plan is that of 64 blocks at once, however long they are."""
    producer = make_producer(batch_tokens=8 * 3)
    rows: list[int] = []
    original = producer._teacher.hidden
    monkeypatch.setattr(
        producer._teacher, "hidden", lambda ids_NT, lengths: (rows.append(len(ids_NT)), original(ids_NT, lengths))[1]
    )
    producer.online_work(20)()
    assert rows == [3] * 6 + [2]


def test_the_draws_of_a_row_do_not_depend_on_its_shard_or_pass(
    make_producer: Callable[..., SoftTargetsProducer],
) -> None:
    expected = rows_of(make_producer(), 0, 41)
    for batch_tokens, start, stop in [(64, 16, 41), (8, 3, 20), (10_000, 0, 41)]:
        found = rows_of(make_producer(batch_tokens=batch_tokens), start, stop)
        for row, wanted in zip(found, expected[start:stop], strict=True):
            for column in ("row_id", "input_ids", "segment_lengths", "head_size", "tail_size", "ids"):
                assert row[column] == wanted[column]
            np.testing.assert_allclose(row["logprobs"], wanted["logprobs"], rtol=2**-6)


def test_positions_rows_and_seeds_draw_differently(
    make_producer: Callable[..., SoftTargetsProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    producer = make_producer(batch_tokens=10_000)
    original = producer._sparse_chunks
    monkeypatch.setattr(
        producer,
        "_sparse_chunks",
        lambda hidden, labels, uniforms: (seen.append(uniforms), original(hidden, labels, uniforms))[1],
    )
    rows_of(producer, 0, 41)
    uniforms = np.concatenate(seen)
    assert len(set(uniforms.tolist())) == len(uniforms) > 200
    assert 0.4 < uniforms.mean() < 0.6


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 30 * 7])
def test_the_size_of_a_chunk_of_positions_changes_nothing(
    make_producer: Callable[..., SoftTargetsProducer], monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    expected = rows_of(make_producer(), 0, 16)
    monkeypatch.setattr("pipeline.producers.soft_targets._CHUNK_BYTES_ON_CPU", chunk_bytes)
    found = rows_of(make_producer(), 0, 16)
    assert [row["ids"] for row in found] == [row["ids"] for row in expected]


@pytest.mark.parametrize("tail_weight", [None, 0.05])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_distribution_are_refused(
    make_producer: Callable[..., SoftTargetsProducer], value: float, tail_weight: float | None
) -> None:
    producer = make_producer(tail_weight=tail_weight)
    producer._teacher.model.transformer.ln_f.weight[0] = value
    with pytest.raises(TeacherOutputError, match="soft_targets, train split, row 16: the teacher's logits contain"):
        rows_of(producer, 16, 32)


def test_a_run_with_a_broken_teacher_leaves_no_shard(
    helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(teacher_dir, tmp_path / "teacher")
    model = GPT2LMHeadModel.from_pretrained(broken)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    model.save_pretrained(broken)
    settings = SoftTargetsConfig(top_k=4, tail_weight=None)
    config = helpers.tiny_config(
        broken, text_file, tmp_path / "cache", kinds=("soft_targets",), soft_targets=settings, max_tokens=2000
    )
    with pytest.raises(TeacherOutputError):
        helpers.precomputed(config)
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert not (tmp_path / "cache" / "manifest.json").exists()
