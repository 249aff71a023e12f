"""The samples kind: rows by prompt and index, whatever range of rows is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import PrecomputeConfig, SamplesConfig
from pipeline.corpus.blocks import PromptSet
from pipeline.producers.samples import SamplesProducer
from pipeline.teacher.model import Teacher
from storage import Cache
from storage.rows import samples
from storage.rows.samples import SampleRow

PROMPTS = [np.array(ids) for ids in ([1, 2, 3], [4], [5, 6, 7, 8, 9, 1], [2, 2], [9, 8, 7])]


@pytest.fixture
def make_producer(tiny_teacher: Callable[..., Teacher], tmp_path: Path) -> Callable[..., SamplesProducer]:
    def make(batch_tokens: int = 10_000, seed: int = 0, **changes: object) -> SamplesProducer:
        teacher = tiny_teacher(10, eos_token_id=0)
        settings = SamplesConfig(**({"per_prompt": 3, "max_new_tokens": 6} | changes))
        config = PrecomputeConfig(
            teacher="", data="", out=tmp_path, samples=settings, batch_tokens=batch_tokens, seed=seed
        )
        prompts = {
            "train": PromptSet(prompt_id=[10, 20, 30, 40, 50], prompt_ids=PROMPTS),
            "validation": PromptSet(prompt_id=[7], prompt_ids=PROMPTS[:1]),
        }
        return SamplesProducer(teacher, config, prompts, samples.schema(10))

    return make


def rows_of(producer: SamplesProducer, start: int, stop: int, split: str = "train") -> list[SampleRow]:
    return [row for batch in producer.record_batches(split, start, stop, 4) for row in samples.decode(batch)]


def test_rows_count_samples_of_one_prompt_after_the_other(make_producer: Callable[..., SamplesProducer]) -> None:
    producer = make_producer()
    assert (producer.num_rows("train"), producer.num_rows("validation")) == (15, 3)
    rows = rows_of(producer, 0, 15)
    assert [row.row_id for row in rows] == list(range(15))
    assert [row.prompt_id for row in rows] == [p for p in (10, 20, 30, 40, 50) for _ in range(3)]
    assert [row.sample_index for row in rows] == [0, 1, 2] * 5
    for i, row in enumerate(rows):
        assert row.prompt_ids.tolist() == PROMPTS[i // 3].tolist()
        assert row.text == "".join(f"{i} " for i in row.completion_ids)
        assert len(row.completion_ids) == len(row.completion_logprobs) <= 6
    assert len({row.seed for row in rows}) == 15
    assert [batch.num_rows for batch in producer.record_batches("train", 0, 15, 4)] == [4, 4, 4, 3]


def test_a_row_does_not_depend_on_its_shard_or_batch(make_producer: Callable[..., SamplesProducer]) -> None:
    expected = rows_of(make_producer(), 0, 15)
    for batch_tokens, start, stop in [(10_000, 4, 11), (1, 0, 15), (25, 7, 15)]:
        found = rows_of(make_producer(batch_tokens=batch_tokens), start, stop)
        assert [row.row_id for row in found] == list(range(start, stop))
        for row, wanted in zip(found, expected[start:stop], strict=True):
            assert row.completion_ids.tolist() == wanted.completion_ids.tolist()
            assert (row.seed, row.text, row.finish_reason) == (wanted.seed, wanted.text, wanted.finish_reason)
            np.testing.assert_allclose(row.completion_logprobs, wanted.completion_logprobs, atol=4e-3)


def test_splits_and_seeds_draw_differently(make_producer: Callable[..., SamplesProducer]) -> None:
    train = [row.seed for row in rows_of(make_producer(), 0, 3)]
    validation = [row.seed for row in rows_of(make_producer(), 0, 3, "validation")]
    other = [row.seed for row in rows_of(make_producer(seed=1), 0, 3)]
    assert len({*train, *validation, *other}) == 9


def test_a_cached_sample_is_what_the_teacher_says(
    cache: Cache, teacher_model: Any, tokenizer: Any, forced_logprobs: Callable[[Any, Any, Any], np.ndarray]
) -> None:
    for split in ("train", "validation"):
        blocks = {
            row["row_id"]: row["input_ids"]
            for batch in cache.record_batches("soft_targets", split)
            for row in batch.to_pylist()
        }
        rows = [row for batch in cache.record_batches("samples", split) for row in samples.decode(batch)]
        assert len(rows) == {"train": 32, "validation": 8}[split]
        for row in rows[:6]:
            prompt = row.prompt_ids.tolist()
            block = blocks[row.prompt_id]
            assert any(block[i : i + 6] == prompt for i in range(len(block)))
            assert row.text == tokenizer.decode(row.completion_ids.tolist(), skip_special_tokens=True)
            expected = forced_logprobs(teacher_model, prompt, row.completion_ids)
            np.testing.assert_allclose(row.completion_logprobs, expected, rtol=1e-3, atol=1e-3)
