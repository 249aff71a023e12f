"""An import as a run: packing, splits, the same bytes again, resumed after a kill, refused when another was begun."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from storage import open_cache, verify_cache
from storage.errors import CacheMismatchError, ConfigError, StoppedError
from storage.importing import run as runs
from storage.importing.packing import Packer
from storage.importing.splits import held_out
from storage.rows import soft_targets
from tests.storage.importing.conftest import Import
from tests.storage.importing.dumps import MadeUpTeacher, vllm_row, write_lines
from tests.storage.importing.truth import check_text, stored

SHARD_TOKENS = 200


@pytest.fixture
def dump(made_up: MadeUpTeacher, tmp_path: Path) -> Path:
    """60 texts of 2 to 11 tokens: several shards of SHARD_TOKENS."""
    texts = [made_up.text(2 + n % 10, n) for n in range(60)]
    return write_lines(tmp_path / "dump.jsonl", (vllm_row(made_up, ids, 3) for ids in texts))


@given(lengths=st.lists(st.integers(1, 40), max_size=60), block_tokens=st.integers(3, 25))
def test_each_token_is_packed_once_and_texts_that_fit_stay_whole(lengths: list[int], block_tokens: int) -> None:
    packer = Packer[int](block_tokens)
    blocks = [block for text, length in enumerate(lengths) for block in packer.add(text, length)] + list(packer.rest())
    found: dict[int, list[tuple[int, int]]] = {}
    for block in blocks:
        assert 0 < sum(piece.stop - piece.start for piece in block) <= block_tokens
        for piece in block:
            found.setdefault(piece.text, []).append((piece.start, piece.stop))
    for text, length in enumerate(lengths):
        cuts = [(start, min(start + block_tokens, length)) for start in range(0, length, block_tokens)]
        assert found.get(text, []) == [cut for cut in cuts if cut[1] - cut[0] > 1]


def test_blocks_are_well_filled() -> None:
    lengths = np.random.default_rng(0).integers(2, 129, 5000).tolist()
    packer = Packer[int](128)
    num_blocks = sum(1 for length in lengths for _ in packer.add(0, length)) + sum(1 for _ in packer.rest())
    assert sum(lengths) / (128 * num_blocks) > 0.9


@given(num_texts=st.integers(0, 500), fraction=st.floats(0, 0.99))
def test_the_held_out_share(num_texts: int, fraction: float) -> None:
    num_held = sum(held_out(index, num_texts, fraction) for index in range(num_texts))
    if fraction == 0 or num_texts < 2:
        assert num_held == 0
    else:
        assert 1 <= num_held < num_texts
        assert num_held == 1 or abs(num_held - fraction * num_texts) <= 1


def test_both_splits_hold_each_text_once(imported: Import, made_up: MadeUpTeacher, dump: Path) -> None:
    cache = imported(dump, "topk-jsonl", validation_fraction=0.25, shard_tokens=SHARD_TOKENS)
    assert not verify_cache(cache.path).problems
    assert len(cache.manifest.shards_of("soft_targets", "train")) > 1
    found = {split: {tuple(text["ids"]) for text in stored(cache, split)} for split in ("train", "validation")}
    assert not found["train"] & found["validation"]
    assert found["train"] | found["validation"] == {tuple(made_up.text(2 + n % 10, n)) for n in range(60)}
    assert len(found["validation"]) == 15
    data = cache.identity.data
    assert (data["num_documents"], data["imported_from"]) == (60, "topk-jsonl")
    assert sum(data["num_tokens"].values()) == sum(2 + n % 10 for n in range(60))


def test_the_rest_of_a_block_is_a_segment_in_which_nothing_is_wanted(imported: Import, dump: Path) -> None:
    cache = imported(dump, "topk-jsonl", block_size=40)
    for batch in cache.record_batches("soft_targets", "train"):
        rows = soft_targets.decode(batch)
        for row, lengths in enumerate(rows.segment_lengths):
            assert lengths.sum() == 41
            if not rows.is_valid_target[row, 40 - lengths[-1] + 1 :].any():
                assert set(rows.input_ids[row, -lengths[-1] :].tolist()) == {256}, "the end of text"


def test_long_texts_are_cut_and_that_is_said(
    imported: Import, made_up: MadeUpTeacher, tokenizer_dir: Path, tmp_path: Path
) -> None:
    ids = made_up.text(23, 0)
    path = write_lines(tmp_path / "dump.jsonl", [vllm_row(made_up, ids, 3)])
    config = runs.ImportConfig(
        source=path, format="topk-jsonl", tokenizer=tokenizer_dir, out=tmp_path / "cache", block_size=9, quiet=True
    )
    done = runs.import_cache(config)
    assert "1 texts are longer than a block and were cut" in done.remarks[0]
    pieces = stored(done.cache)
    assert [piece["ids"] for piece in pieces] == [ids[:10], ids[10:20], ids[20:]]
    for piece in pieces:
        check_text(piece, made_up, piece["ids"], 3, with_label=True)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def test_killed_anywhere_and_run_again_it_ends_with_the_same_bytes(
    imported: Import, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"validation_fraction": 0.2, "shard_tokens": SHARD_TOKENS}
    whole = contents(imported(dump, "topk-jsonl", out=tmp_path / "whole", **settings).path)
    again = imported(dump, "topk-jsonl", out=tmp_path / "whole", **settings)
    assert contents(again.path) == whole, "a finished cache stays as it is"
    stage_shard = runs.DirectoryDestination.stage_shard
    num_shards = sum(name.endswith(".arrow") for name in whole)
    assert num_shards >= 3
    for stop_at in range(num_shards):
        calls = SimpleNamespace(count=0)

        def stopping(*arguments: Any, calls: SimpleNamespace = calls, stop_at: int = stop_at) -> Any:
            if calls.count == stop_at:
                raise StoppedError
            calls.count += 1
            return stage_shard(*arguments)

        out = tmp_path / f"stopped-{stop_at}"
        with monkeypatch.context() as patch:
            patch.setattr(runs.DirectoryDestination, "stage_shard", stopping)
            with pytest.raises(StoppedError):
                imported(dump, "topk-jsonl", out=out, **settings)
        assert not (out / "manifest.json").exists()
        assert contents(imported(dump, "topk-jsonl", out=out, **settings).path) == whole


def test_another_source_or_setting_is_refused(
    imported: Import, made_up: MadeUpTeacher, dump: Path, tmp_path: Path
) -> None:
    cache = imported(dump, "topk-jsonl")
    before = contents(cache.path)
    with pytest.raises(CacheMismatchError, match=r"mantissa_bits = 10, this run has 4"):
        imported(dump, "topk-jsonl", mantissa_bits=4)
    write_lines(dump, [vllm_row(made_up, made_up.text(11, n), 3) for n in range(60)])
    with pytest.raises(CacheMismatchError):
        imported(dump, "topk-jsonl")
    assert contents(cache.path) == before


def test_a_directory_with_other_files_is_refused(imported: Import, dump: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not empty and not a cache"):
        imported(dump, "topk-jsonl", out=tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 256}, "--vocab-size is 256, but .* has ids up to 256"),
        ({"block_size": 1}, "--block-size is 1, expected 2 to"),
        ({"validation_fraction": 1.0}, "--validation-fraction is 1.0"),
        ({"mass_tolerance": -0.1}, "--mass-tolerance is -0.1"),
        ({"mantissa_bits": 11}, "--mantissa-bits is 11, expected 1 to 10"),
        ({"shard_tokens": 0}, "--shard-tokens is 0"),
        ({"source": Path("s3:/bucket/dump.jsonl")}, "looks like a URL"),
    ],
)
def test_settings_that_are_not_possible(
    tokenizer_dir: Path, dump: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    settings: dict[str, Any] = {"source": dump, "tokenizer": tokenizer_dir, "out": tmp_path / "cache", "quiet": True}
    with pytest.raises(ConfigError, match=says):
        runs.import_cache(runs.ImportConfig(format="topk-jsonl", **(settings | change)))


def test_more_rows_than_the_tokenizer_has_ids(imported: Import, dump: Path) -> None:
    cache = imported(dump, "topk-jsonl", vocab_size=300, teacher="made up")
    assert (cache.identity.vocab_size, cache.identity.tokenizer["size"]) == (300, 257)
    assert (cache.identity.tokenizer["eos_token_id"], cache.identity.teacher["id"]) == (256, "made up")
    assert open_cache(cache.path).checked_tokenizer_dir()


def test_a_beginning_is_stated_when_every_text_has_it(
    imported: Import, made_up: MadeUpTeacher, tokenizer_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_dir, directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    begin = "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 256)])
    tokenizer.save(str(directory / "tokenizer.json"))
    texts = [[256, *made_up.text(5, n)] for n in range(3)]
    for others, expected in (([], (256,)), ([made_up.text(5, 9)], ())):
        path = write_lines(tmp_path / "dump.jsonl", [vllm_row(made_up, ids, 3) for ids in [*texts, *others]])
        cache = imported(path, "topk-jsonl", tokenizer=directory, out=tmp_path / f"cache-{len(others)}")
        assert cache.identity.beginning_ids == expected
