"""A whole run: what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig, precompute
from storage import Cache, open_cache, verify_cache
from storage.rows import beams, samples
from tests.precomputed import precomputed

Snapshot = Callable[[Path], dict[str, str]]


def test_a_finished_cache_verifies_and_holds_what_was_planned(finished: Cache) -> None:
    verification = verify_cache(finished.path)
    assert verification.problems == ()
    assert verification.num_shards == len(finished.manifest.shards) >= 8
    assert finished.num_rows("samples", "train") == 3 * 6
    assert finished.num_rows("beams", "train") + finished.num_rows("beams", "validation") == 20
    for split in ("train", "validation"):
        num_tokens = finished.identity.data["num_tokens"][split]
        assert finished.num_rows("soft_targets", split) == num_tokens // 33
    names = {path.relative_to(finished.path).parts[0] for path in finished.path.rglob("*")}
    assert names == {
        "README.md", "manifest.json", "plan.json", "tokenizer", "commits", "soft_targets", "samples", "beams",
    }  # fmt: skip


def test_prompts_of_samples_and_beams_are_beginnings_of_blocks_pieces(finished: Cache) -> None:
    for split in ("train", "validation"):
        blocks = {
            row["row_id"]: row for batch in finished.record_batches("soft_targets", split) for row in batch.to_pylist()
        }
        prompts = [
            (row.prompt_id, row.prompt_ids.tolist())
            for kind, module in (("samples", samples), ("beams", beams))
            for batch in finished.record_batches(kind, split)
            for row in module.decode(batch)
        ]
        assert prompts
        for prompt_id, ids in prompts:
            lengths = blocks[prompt_id]["segment_lengths"]
            starts = np.cumsum(lengths) - lengths
            pieces = [
                blocks[prompt_id]["input_ids"][start : start + length]
                for start, length in zip(starts, lengths, strict=True)
            ]
            assert any(len(piece) > 5 and piece[:5] == ids for piece in pieces)


def test_two_runs_write_the_same_bytes(
    configure: Callable[..., PrecomputeConfig], finished: Cache, tmp_path: Path, snapshot: Snapshot
) -> None:
    precompute(configure(tmp_path / "again"))
    assert snapshot(tmp_path / "again") == snapshot(finished.path)


def test_the_way_of_splitting_work_into_passes_is_free(
    configure: Callable[..., PrecomputeConfig], finished: Cache, tmp_path: Path
) -> None:
    found = precomputed(configure(tmp_path / "cache", batch_tokens=1))
    assert [shard.path for shard in found.manifest.shards] == [shard.path for shard in finished.manifest.shards]
    assert [shard.num_rows for shard in found.manifest.shards] == [s.num_rows for s in finished.manifest.shards]


def test_some_kinds_only(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    for kind in ("soft_targets", "samples", "beams"):
        cache = precomputed(configure(tmp_path / kind, kinds=(kind,)))
        assert {shard.key.kind for shard in cache.manifest.shards} == {kind}
        assert verify_cache(cache.path).problems == ()


def test_without_validation_everything_is_for_training(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path
) -> None:
    cache = precomputed(configure(tmp_path / "cache", validation_fraction=0.0))
    assert {shard.key.split for shard in cache.manifest.shards} == {"train"}
    assert cache.num_rows("beams", "train") == 20


def test_prompts_from_a_column_end_up_in_the_cache(
    configure: Callable[..., PrecomputeConfig], tokenizer: Any, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": f"a text that is number {i} of many", "ask": f"Question {i}?"} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configure(
        tmp_path / "cache",
        data=str(data),
        samples=SamplesConfig(num_prompts=5, per_prompt=2, prompt_column="ask", max_new_tokens=4),
        beams=BeamsConfig(num_prompts=4, prompt_column="ask", max_new_tokens=4),
        validation_fraction=0.0,
    )
    cache = precomputed(config)
    expected = [tokenizer(row["ask"], add_special_tokens=False)["input_ids"] for row in rows]
    sampled = [row for batch in cache.record_batches("samples", "train") for row in samples.decode(batch)]
    assert [row.prompt_ids.tolist() for row in sampled] == [ids for ids in expected[:5] for _ in range(2)]
    searched = [row for batch in cache.record_batches("beams", "train") for row in beams.decode(batch)]
    assert [row.prompt_ids.tolist() for row in searched] == expected[:4]


def test_a_vocabulary_padded_beyond_the_tokenizer_is_tolerated(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, tmp_path: Path
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=300)
    cache = precomputed(configure(tmp_path / "cache", teacher=str(teacher)))
    assert (cache.identity.vocab_size, cache.identity.tokenizer["size"]) == (300, 257)
    assert verify_cache(cache.path).problems == ()


def test_a_teacher_without_end_of_text(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, tmp_path: Path
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=256, eos_token=None)
    cache = precomputed(configure(tmp_path / "cache", teacher=str(teacher)))
    assert cache.identity.tokenizer["eos_token_id"] is None
    reasons = {
        reason
        for batch in cache.record_batches("beams", "train")
        for reason in batch.column("finish_reasons").flatten().to_pylist()
    }
    assert reasons == {"length"}


@pytest.mark.parametrize(
    "soft_targets",
    [
        SoftTargetsConfig(top_k=257, tail_weight=None, temperatures=(1.0, 0.5)),
        SoftTargetsConfig(top_k=257, tail_weight=0.1),
        SoftTargetsConfig(top_k=0, tail_weight=0.02, temperatures=(2.0,)),
        SoftTargetsConfig(top_k=1, tail_weight=None, temperatures=(0.25, 1.0, 4.0)),
    ],
)
def test_unusual_soft_targets_make_a_sound_cache(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, soft_targets: SoftTargetsConfig
) -> None:
    cache = precomputed(configure(tmp_path / "cache", kinds=("soft_targets",), soft_targets=soft_targets))
    assert verify_cache(cache.path).problems == ()
    assert cache.identity.temperatures == soft_targets.temperatures


@pytest.mark.parametrize("mantissa_bits", range(1, 11))
def test_every_number_of_mantissa_bits_that_the_settings_allow_can_be_written(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, mantissa_bits: int
) -> None:
    settings = SoftTargetsConfig(top_k=4, tail_weight=None, mantissa_bits=mantissa_bits)
    config = configure(tmp_path / "cache", kinds=("soft_targets",), soft_targets=settings, max_tokens=400)
    assert verify_cache(precomputed(config).path).problems == ()


def test_the_whole_context_can_be_used(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    config = configure(
        tmp_path / "cache",
        document_separator=None,
        block_size=64,
        samples=SamplesConfig(num_prompts=3, prompt_tokens=40, max_new_tokens=24),
        beams=BeamsConfig(num_prompts=3, prompt_tokens=40, max_new_tokens=24),
    )
    assert verify_cache(precomputed(config).path).problems == ()


def test_a_single_prompt_is_for_training(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    beams_config = BeamsConfig(num_prompts=1, prompt_tokens=5, max_new_tokens=3)
    config = configure(tmp_path / "cache", kinds=("beams",), beams=beams_config, validation_fraction=0.7)
    assert precomputed(config).num_rows("beams", "train") == 1


def test_tokens_are_counted_with_their_ends_of_text(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = precomputed(configure(tmp_path / "cache", kinds=("soft_targets",), quiet=False))
    num_tokens = sum(cache.identity.data["num_tokens"].values())
    assert f"tokenize: {num_tokens:,} tokens" in capsys.readouterr().err


def test_opening_needs_the_manifest(finished: Cache, copied: Path) -> None:
    assert open_cache(copied).manifest == finished.manifest
