"""Blocks of which only some targets are wanted: the teacher's head runs on those, and nothing else is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import PrecomputeConfig, SoftTargetsConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.parts.joining import TokenizationCounts
from pipeline.corpus.token_store import TokenStore, TokenWriter
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.errors import NoWantedTargetError
from pipeline.estimate import render_plan
from pipeline.producers.soft_targets import SoftTargetsProducer
from pipeline.run import plan_only
from storage import Cache, verify_cache
from storage.rows import soft_targets
from tests.precomputed import precomputed

BLOCK_SIZE, NUM_BLOCKS = 8, 41
MakeProducer = Callable[..., SoftTargetsProducer]
# Values per target besides the entries.
SCALARS = ("tail_logprob", "entropy", "label_logprob", "tail_logmass_at_2")


def write_store(directory: Path, flags: np.ndarray | None) -> TokenStore:
    """A store of 41 blocks of 9 tokens in documents of 2 to 19, with a flag for each token or without flags."""
    rng = np.random.default_rng(0)
    writer = TokenWriter(directory, np.uint16, marks_wanted=flags is not None)
    num_tokens = (BLOCK_SIZE + 1) * NUM_BLOCKS
    while writer.num_tokens < num_tokens:
        length = min(int(rng.integers(2, 20)), num_tokens - writer.num_tokens)
        place = slice(writer.num_tokens, writer.num_tokens + length)
        writer.append(rng.integers(0, 30, length), None if flags is None else flags[place])
        writer.end_document()
    return writer.close()


@pytest.fixture
def flags() -> np.ndarray:
    """About half of the tokens are wanted; of blocks 16 to 31, none."""
    wanted: np.ndarray = np.random.default_rng(2).random((NUM_BLOCKS, BLOCK_SIZE + 1)) < 0.5
    wanted[16:32] = False
    return wanted.reshape(-1)


@pytest.fixture
def make_producer(tiny_teacher: Callable[..., Any], helpers: ModuleType, tmp_path: Path) -> MakeProducer:
    def make(flags: np.ndarray | None, batch_tokens: int = 64) -> SoftTargetsProducer:
        settings = SoftTargetsConfig(top_k=2, tail_weight=0.05, temperatures=(1.0, 2.0))
        config = helpers.tiny_config(
            tmp_path, tmp_path, tmp_path, block_size=BLOCK_SIZE, batch_tokens=batch_tokens, soft_targets=settings
        )
        store = write_store(tmp_path / ("plain" if flags is None else "flagged"), flags)
        schema = soft_targets.schema(30, BLOCK_SIZE, settings.temperatures, is_wanted=flags is not None)
        return SoftTargetsProducer(tiny_teacher(30), config, {"train": Blocks(store, BLOCK_SIZE)}, schema)

    return make


def rows_of(producer: SoftTargetsProducer) -> list[dict[str, Any]]:
    return pa.Table.from_batches(producer.record_batches("train", 0, NUM_BLOCKS, 16)).to_pylist()


def targets_of(row: dict[str, Any]) -> list[tuple[list[int], list[int], list[float]]]:
    """Head ids, tail ids and all values of each target."""
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    return [
        (
            [next(ids) for _ in range(row["head_size"][t])],
            [next(ids) for _ in range(row["tail_size"][t])],
            [*[next(logprobs) for _ in range(row["head_size"][t])], *[row[name][t] for name in SCALARS]],
        )
        for t in range(BLOCK_SIZE)
    ]


@pytest.mark.parametrize("batch_tokens", [8, 64, 10_000])
def test_wanted_targets_are_those_of_a_run_that_wants_all(
    make_producer: MakeProducer, flags: np.ndarray, batch_tokens: int
) -> None:
    everything, wanted = rows_of(make_producer(None)), rows_of(make_producer(flags, batch_tokens))
    label_flags = flags.reshape(NUM_BLOCKS, BLOCK_SIZE + 1)[:, 1:]
    num_wanted = 0
    for row, other, of_row in zip(wanted, everything, label_flags, strict=True):
        assert (row["input_ids"], row["segment_lengths"]) == (other["input_ids"], other["segment_lengths"])
        ends = set(np.cumsum(row["segment_lengths"]).tolist())
        assert row["is_wanted"] == [bool(flag) and t + 1 not in ends for t, flag in enumerate(of_row)]
        for is_wanted, target, same in zip(row["is_wanted"], targets_of(row), targets_of(other), strict=True):
            if is_wanted:
                assert target[:2] == same[:2]  # the same draws
                np.testing.assert_allclose(target[2], same[2], rtol=2**-6)
            else:
                assert target == ([], [], [0.0] * len(SCALARS))
            num_wanted += is_wanted
    assert 60 < num_wanted < 150


def test_flags_that_are_all_true_change_nothing_but_the_column(make_producer: MakeProducer) -> None:
    plain = pa.Table.from_batches(make_producer(None).record_batches("train", 0, NUM_BLOCKS, 16))
    every = np.ones(NUM_BLOCKS * (BLOCK_SIZE + 1), np.bool_)
    flagged = pa.Table.from_batches(make_producer(every).record_batches("train", 0, NUM_BLOCKS, 16))
    assert flagged.drop_columns("is_wanted").equals(plain)


def test_the_teachers_head_runs_on_wanted_targets_alone(
    make_producer: MakeProducer, flags: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make_producer(flags)
    num_positions = []
    original = producer._teacher.logits
    monkeypatch.setattr(
        producer._teacher,
        "logits",
        lambda hidden, *rest: (num_positions.append(len(hidden)), original(hidden, *rest))[1],
    )
    rows = rows_of(producer)
    assert sum(num_positions) == sum(sum(row["is_wanted"]) for row in rows) > 0
    num_positions.clear()
    work = producer.online_work(20)
    assert work is not None
    work()
    assert sum(num_positions) == sum(sum(row["is_wanted"]) for row in rows[:20])


@pytest.fixture
def flagged_run(
    configure: Callable[..., PrecomputeConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[PrecomputeConfig, Cache]:
    """A run over a text of which every second token is wanted, as the source says."""
    original_append = TokenWriter.append

    def append(writer: TokenWriter, ids: np.ndarray, is_wanted: np.ndarray | None = None) -> None:
        marks = writer._is_wanted is not None and is_wanted is None
        original_append(writer, ids, np.arange(len(ids)) % 2 == 0 if marks else is_wanted)

    monkeypatch.setattr(TokenWriter, "append", append)
    monkeypatch.setattr(
        "pipeline.corpus.parts.joining.TokenWriter",
        lambda directory, dtype, **_: TokenWriter(
            directory, dtype, marks_wanted=directory.name in ("train", "validation")
        ),
    )
    config = configure(tmp_path / "flagged-run")
    return config, precomputed(config)


def test_a_run_with_flags_writes_a_cache_of_version_two_and_can_be_repeated(
    flagged_run: tuple[PrecomputeConfig, Cache], tmp_path: Path
) -> None:
    config, cache = flagged_run
    assert verify_cache(cache.path).problems == ()
    assert cache.identity.config["soft_targets"]["is_wanted"] is True
    for split in ("train", "validation"):
        rows = [soft_targets.decode(batch) for batch in cache.record_batches("soft_targets", split)]
        num_wanted = sum(int(r.is_valid_target.sum()) for r in rows)
        assert num_wanted < 0.6 * sum(int(r.is_in_one_segment.sum()) for r in rows)
        assert sum(shard.num_targets for shard in cache.shards("soft_targets", split)) == num_wanted
    again = precomputed(dataclasses.replace(config, out=tmp_path / "again"))
    assert again.rows_sha256 == cache.rows_sha256
    (cache.path / "manifest.json").unlink()
    assert precomputed(config).rows_sha256 == cache.rows_sha256


def test_a_plan_says_how_many_tokens_are_wanted(flagged_run: tuple[PrecomputeConfig, Cache], tmp_path: Path) -> None:
    config, cache = flagged_run
    text = plan_only(dataclasses.replace(config, out=tmp_path / "none", plan="exact"), render_plan)
    (line,) = [line for line in text.splitlines() if line.startswith("train")]
    wanted, total = (int(line.split()[place].replace(",", "")) for place in (-3, 1))
    assert 0.4 < wanted / total < 0.6
    assert total == cache.identity.data["num_tokens"]["train"]


def test_a_text_without_a_wanted_token_is_refused(
    make_producer: MakeProducer, tiny_teacher: Callable[..., Any], tmp_path: Path
) -> None:
    config = make_producer(None)._config
    store = write_store(tmp_path / "none", np.zeros(NUM_BLOCKS * (BLOCK_SIZE + 1), np.bool_))
    counts = TokenizationCounts(
        num_documents=9, num_documents_skipped=0, num_prompts_skipped=0, validation_is_end_of_text=False
    )
    documents = {"train": store, "validation": store}
    blocks = {split: Blocks(store, BLOCK_SIZE) for split in documents}
    tokenized = TokenizedCorpus(documents=documents, blocks=blocks, prompts={}, beginning_ids=(), counts=counts)
    with pytest.raises(NoWantedTargetError, match="of 369 tokens to train on, none is of an assistant"):
        SoftTargetsProducer.from_text(tiny_teacher(30), tokenized, config)


def test_a_run_without_flags_has_no_such_setting(finished: Cache) -> None:
    assert "is_wanted" not in finished.identity.config["soft_targets"]
