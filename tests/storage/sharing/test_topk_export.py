"""Top-k Parquet out of caches: every number against the cache's own, what is lost, and other readers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from storage import Cache, open_cache
from storage.errors import ConfigError
from storage.importing.config import ImportConfig
from storage.importing.run import import_cache
from storage.rows import soft_targets
from storage.sharing.topk_export import export_topk
from storage.sharing.topk_rows import TopkLayout
from tests.storage.importing.dumps import MadeUpTeacher, vllm_row, write_lines
from tests.wanted import marked, some

Piece = dict[str, Any]


def pieces(cache: Cache, split: str) -> Iterator[Piece]:
    """Every piece of a text with a valid target, from the stored columns by plain loops."""
    for batch in cache.record_batches("soft_targets", split):
        rows = soft_targets.decode(batch)
        ids, logprobs = iter(rows.ids.tolist()), iter(rows.logprobs.tolist())
        for row, lengths in enumerate(rows.segment_lengths):
            heads = []
            for head_size, tail_size in zip(rows.head_size[row], rows.tail_size[row], strict=True):
                heads.append([(next(logprobs), next(ids)) for _ in range(head_size)])
                for _ in range(tail_size):
                    next(ids)
            start = 0
            for length in lengths.tolist():
                targets = range(start, start + length - 1)
                taught = [bool(rows.is_valid_target[row, t]) for t in targets]
                if any(taught):
                    tokens = rows.input_ids[row, start : start + length].tolist()
                    labels = [-100] + [token if yes else -100 for token, yes in zip(tokens[1:], taught, strict=True)]
                    best = [sorted(heads[t], key=lambda pair: -pair[0]) for t in targets]
                    yield {"input_ids": tokens, "labels": labels, "heads": best}
                start += length


def read(out: Path, split: str) -> list[Piece]:
    return [row for file in sorted(out.glob(f"{split}-*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("alignment", ["next", "same"])
@pytest.mark.parametrize("is_marked", [False, True])
def test_every_list_is_the_cache_s(cache: Cache, tmp_path: Path, alignment: Any, is_marked: bool) -> None:
    source = marked(cache, tmp_path / "marked", some) if is_marked else cache
    export_topk(source.path, tmp_path / "out", TopkLayout(alignment=alignment))
    for split in ("train", "validation"):
        wanted, found = list(pieces(source, split)), read(tmp_path / "out", split)
        assert len(found) == len(wanted) > 0
        for row, piece in zip(found, wanted, strict=True):
            assert row["input_ids"] == piece["input_ids"]
            assert row["labels"] == piece["labels"]
            lists = [list(zip(a, b, strict=True)) for a, b in zip(row["logprobs"], row["ids"], strict=True)]
            nothing = lists.pop(0 if alignment == "same" else -1)
            assert nothing == []
            assert [sorted(one) for one in lists] == [sorted(one) for one in piece["heads"]]
            assert all(sorted(p for p, _ in one)[::-1] == [p for p, _ in one] for one in lists), "best first"
    assert sorted(path.name for path in (tmp_path / "out" / "tokenizer").iterdir()) == sorted(
        path.name for path in source.tokenizer_dir.iterdir()
    )


def test_rectangles_for_trainers_that_stack_them(cache: Cache, tmp_path: Path) -> None:
    layout = TopkLayout(ids_column="token_ids", logprobs_column="top_values", top_k=6)
    export_topk(cache.path, tmp_path / "out", layout)
    for row, piece in zip(read(tmp_path / "out", "train"), pieces(cache, "train"), strict=True):
        ids, logprobs = np.array(row["token_ids"]), np.array(row["top_values"])
        assert ids.shape == logprobs.shape == (len(row["input_ids"]), 6)
        assert all(len(set(one)) == 6 for one in ids.tolist()), "a scatter must not meet an id twice"
        for t, head in enumerate(piece["heads"]):
            assert logprobs[t, : len(head)].tolist() == [logprob for logprob, _ in head[:6]]
            assert (logprobs[t, len(head) :] == -1e9).all()
        assert (logprobs[-1] == -1e9).all()


def test_what_is_lost_is_said(cache: Cache, tmp_path: Path) -> None:
    lost = export_topk(cache.path, tmp_path / "out", TopkLayout())
    masses, num_draws = [], 0
    for split in ("train", "validation"):
        for batch in cache.record_batches("soft_targets", split):
            rows = soft_targets.decode(batch)
            masses += np.exp(rows.tail_logprob[rows.is_valid_target].astype(float)).tolist()
            num_draws += int(rows.tail_size.sum())
    assert lost.num_targets == len(masses)
    assert lost.num_draws == num_draws > 0
    # The cache rounds the head to few bits, so head and tail add up to 1 only about.
    assert lost.lost_mass_sum / lost.num_targets == pytest.approx(np.mean(masses), abs=0.01)
    assert "sampled ids a target" in lost.describe()
    told = json.loads(pq.read_metadata(next((tmp_path / "out").glob("train-*.parquet"))).metadata[b"teachonce"])
    assert told["alignment"] == "next"
    assert 0 < told["lost_mass_mean"] < told["lost_mass_max"] <= 1
    assert told["lost"].startswith("lost: the rest of each distribution")


@pytest.fixture
def imported(tmp_path: Path, helpers: Any) -> Path:
    helpers.make_tokenizer(tmp_path / "tokenizer")
    teacher = MadeUpTeacher(257)
    path = write_lines(tmp_path / "dump.jsonl", [vllm_row(teacher, teacher.text(4 + n, n), 5) for n in range(12)])
    config = ImportConfig(
        source=path, format="topk-jsonl", tokenizer=tmp_path / "tokenizer", out=tmp_path / "first",
        validation_fraction=0.0, quiet=True,
    )  # fmt: skip
    return import_cache(config).cache.path


def test_exported_and_imported_again_it_has_the_same_lists(imported: Path, tmp_path: Path) -> None:
    export_topk(imported, tmp_path / "out", TopkLayout())
    config = ImportConfig(
        source=tmp_path / "out", format="topk-parquet", tokenizer=tmp_path / "out" / "tokenizer",
        out=tmp_path / "second", validation_fraction=0.0, labels_column="labels", quiet=True,
    )  # fmt: skip
    second = import_cache(config).cache
    wanted, found = (
        {tuple(piece["input_ids"]): (piece["labels"], piece["heads"]) for piece in pieces(one, "train")}
        for one in (open_cache(imported), second)
    )
    assert found == wanted
    assert len(found) == 12


def test_a_directory_that_is_not_empty_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists and is not an empty directory"):
        export_topk(cache.path, cache.path, TopkLayout())
    with pytest.raises(ConfigError, match="--top-k is 0"):
        TopkLayout(top_k=0)


def test_datasets_reads_the_export(imported: Path, tmp_path: Path) -> None:
    export_topk(imported, tmp_path / "out", TopkLayout())
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "arrow"))
    assert rows.to_list() == read(tmp_path / "out", "train")
