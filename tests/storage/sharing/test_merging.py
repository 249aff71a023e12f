"""merge: the rows of its sources one after the other, what the merged cache says of them, and running it again."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import RowStream
from storage.errors import CacheMismatchError
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows import beams, samples, soft_targets
from storage.rows.kinds import KINDS
from storage.sharing.merging import merge
from tests.precomputed import precomputed
from tests.storage.sharing.merges import (
    CONFIG,
    SHARED_CONFIG,
    SIZES,
    Build,
    assert_holds,
    config_with,
    data_of,
    refusing,
    rows_of,
)
from tests.storage.stopping import snapshot


def test_a_merged_cache_holds_the_rows_of_its_sources_in_order(build: Build, tmp_path: Path) -> None:
    sources = [build(name) for name in "abc"]
    merged = merge(sources, tmp_path / "out")
    assert merged.path == tmp_path / "out"
    assert_holds(tmp_path / "out", sources)
    assert [s.path for s in merged.manifest.shards_of("soft_targets", "train")][-1].endswith("00004-of-00005.arrow")
    assert [s.first_row_id for s in merged.manifest.shards_of("soft_targets", "train")] == [0, 8, 0, 4, 0]


def test_shards_become_second_names_of_the_same_files(two: list[Path], tmp_path: Path) -> None:
    before = [snapshot(source) for source in two]
    merged = merge(two, tmp_path / "out")
    of_sources = {p.stat().st_ino for source in two for p in source.rglob("*.arrow")}
    assert {(merged.path / shard.path).stat().st_ino for shard in merged.manifest.shards} == of_sources
    others = [p for p in merged.path.rglob("*") if p.is_file() and p.suffix != ".arrow"]
    assert all(path.stat().st_nlink == 1 for path in others)
    assert [snapshot(source) for source in two] == before


def test_where_links_are_refused_shards_are_copied(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = merge(two, tmp_path / "linked")

    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    copied = merge(two, tmp_path / "copied")
    assert snapshot(copied.path) == snapshot(linked.path)
    assert all((copied.path / shard.path).stat().st_nlink == 1 for shard in copied.manifest.shards)


def test_the_identity_adds_up_what_the_sources_say(build: Build, tmp_path: Path) -> None:
    sources = [
        build("a", SIZES["a"], software={"teachonce": "0.1.0", "torch": "2.8"}),
        build("b", SIZES["b"], software={"teachonce": "0.1.0", "torch": "2.9"}, config=config_with("seed", 7)),
        build("c", SIZES["c"], config=config_with("samples.num_prompts", 99)),
    ]
    merged = merge(sources, tmp_path / "out").identity
    assert merged.data["source"] == "a.txt + b.txt + c.txt"
    fingerprints = [data_of(name)["fingerprint"] for name in "abc"]
    joined = hashlib.sha256("".join(f"{f}\n" for f in fingerprints).encode()).hexdigest()
    assert merged.data["fingerprint"] == joined
    assert [s["fingerprint"] for s in merged.data["sources"]] == fingerprints
    assert merged.data["num_documents"] == 30 + ord("a") + ord("b") + ord("c")
    assert merged.data["num_tokens"] == {"train": 300, "validation": ord("a") + ord("b") + ord("c")}
    assert merged.data["longest_prompt_tokens"] == {"samples": 10 + max(ord(n) % 7 for n in "abc"), "beams": 13}
    assert merged.software == {"teachonce": "0.1.0", "torch": "2.8, 2.9"}
    assert merged.config == SHARED_CONFIG
    assert [s["config"]["seed"] for s in merged.data["sources"]] == [0, 7, 0]
    assert [s["planned_shards"]["beams"] for s in merged.data["sources"]] == [
        {"train": 1}, {"train": 1, "validation": 1}, {"train": 2},
    ]  # fmt: skip
    assert merged.planned_shards["beams"] == {"train": 4, "validation": 1}


@pytest.mark.parametrize(
    ("licences", "joined"),
    [
        (["mit", "mit"], "mit"),
        (["mit", "cc0-1.0"], ["mit", "cc0-1.0"]),
        (["mit", None], None),
        ([None, None], None),
    ],
)
def test_the_card_states_the_licence_of_every_source(
    build: Build, tmp_path: Path, licences: list[str | None], joined: object
) -> None:
    sources = [build(name, data=data_of(name, licence=licence)) for name, licence in zip("ab", licences, strict=True)]
    merged = merge(sources, tmp_path / "out")
    assert merged.identity.data["licence"] == joined
    card = (merged.path / "README.md").read_text()
    header = json.loads(card.split("---")[1])
    assert header.get("license") == joined
    for name, licence in zip("ab", licences, strict=True):
        assert f"- Data: `{name}.txt`, licence {licence or 'not stated by the source'}; the rows" in card
    assert "| soft_targets | train | 2 |" in card
    assert "`row_id` and `prompt_id` count each of the sources above on its own" in card
    for single in sources:
        assert "sources above" not in (single / "README.md").read_text()


def test_a_finished_merge_run_again_changes_nothing(two: list[Path], tmp_path: Path) -> None:
    before = snapshot(merge(two, tmp_path / "out").path)
    merge(two, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    with pytest.raises(CacheMismatchError):
        merge(two[::-1], tmp_path / "out")


def test_a_merge_run_again_brings_back_lost_shards(two: list[Path], tmp_path: Path) -> None:
    out = merge(two, tmp_path / "out").path
    before = snapshot(out)
    lost, cut, *_ = sorted(out.rglob("*.arrow"))
    lost.unlink()
    cut.unlink()  # a name of the source's own file
    cut.write_bytes(b"cut")
    merge(two, out)
    assert snapshot(out) == before


def test_merging_merged_caches_is_merging_all_of_them(build: Build, tmp_path: Path) -> None:
    a, b, c = (build(name) for name in "abc")
    at_once = merge([a, b, c], tmp_path / "at once").path
    left = merge([merge([a, b], tmp_path / "ab").path, c], tmp_path / "left").path
    right = merge([a, merge([b, c], tmp_path / "bc").path], tmp_path / "right").path
    assert snapshot(left) == snapshot(right) == snapshot(at_once)


def test_progress_counts_every_byte_of_the_shards(two: list[Path], tmp_path: Path) -> None:
    told: list[int] = []
    merged = merge(two, tmp_path / "out", told.append)
    assert told == [shard.shard_bytes for shard in merged.manifest.shards]
    again: list[int] = []
    merge(two, tmp_path / "out", again.append)
    assert again == told


shard_sizes = st.fixed_dictionaries(
    {kind: st.fixed_dictionaries({s: st.lists(st.integers(1, 2), max_size=2) for s in SPLITS}) for kind in KINDS}
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(shard_sizes, min_size=2, max_size=3), rest=st.integers(0, 3))
def test_any_shards_merge_and_stream(
    make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, sizes: list[dict[str, Any]], rest: int
) -> None:
    base = tmp_path_factory.mktemp("any")
    # Shards of whole record batches, the last one of each place perhaps shorter.
    sources = [
        make.cache(
            base / name,
            {
                kind: {split: [4 * n for n in counts[:-1]] + [4 * n - rest for n in counts[-1:]]
                       for split, counts in per_split.items()}
                for kind, per_split in per_kind.items()
            },
            ord(name),
            data=data_of(name),
            config=CONFIG,
        )
        for name, per_kind in zip("abcd", sizes, strict=False)
    ]  # fmt: skip
    merged = merge(sources, base / "out")
    assert_holds(merged.path, sources)
    for kind, split in itertools.product(KINDS, SPLITS):
        num_rows = merged.num_rows(kind, split)
        if num_rows:
            epoch = next(RowStream(merged, kind, split, batch_rows=num_rows, seed=1).batches()).rows
            streamed, stored = (sorted(map(repr, t.to_pylist())) for t in (epoch, rows_of(merged, kind, split)))
            assert streamed == stored


@pytest.fixture(scope="module")
def real(helpers: ModuleType, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Cache]:
    """Two caches that a teacher wrote, and the cache merged from them."""
    base = tmp_path_factory.mktemp("real")
    caches = []
    for seed, name in enumerate(("first", "second")):
        (base / f"{name}.txt").write_text("".join(helpers.make_text(40 + 15 * seed, seed=seed)))
        caches.append(precomputed(helpers.tiny_config(teacher_dir, base / f"{name}.txt", base / name)))
    return [*caches, merge([cache.path for cache in caches], base / "merged")]


def test_a_teachers_caches_merge_with_their_tokenizer(real: list[Cache]) -> None:
    first, second, merged = real
    assert_holds(merged.path, [first.path, second.path])
    assert snapshot(merged.tokenizer_dir) == snapshot(first.tokenizer_dir)
    assert [f for f in merged.manifest.files if f.path != "README.md"] == list(first.manifest.files[1:])
    for split in SPLITS:
        means = [cache.manifest.teacher_perplexity(split) for cache in real]
        assert min(means[:2]) <= means[2] <= max(means[:2])


def test_prompts_are_found_in_the_blocks_of_their_own_source(real: list[Cache]) -> None:
    merged = real[-1]
    for kind, decode in (("samples", samples.decode), ("beams", beams.decode)):
        num_found = 0
        for source in range(2):
            blocks = {
                int(row_id): bytes(input_ids.astype("uint16"))
                for batch in of_source(merged, source, "soft_targets")
                for rows in [soft_targets.decode(batch)]
                for row_id, input_ids in zip(rows.row_id, rows.input_ids, strict=True)
            }
            for batch in of_source(merged, source, kind):
                for row in decode(batch):
                    assert bytes(row.prompt_ids.astype("uint16")) in blocks[row.prompt_id]
                    num_found += 1
        assert num_found == merged.num_rows(kind, "train")


def of_source(merged: Cache, source: int, kind: str) -> Iterator[pa.RecordBatch]:
    """Train rows of one source, found as storage/FORMAT.md says."""
    counts = [entry["planned_shards"][kind]["train"] for entry in merged.identity.data["sources"]]
    first = sum(counts[:source])
    for record in merged.manifest.shards_of(kind, "train")[first : first + counts[source]]:
        shard = merged.open_shard(record)
        yield from (shard.read_batch(index) for index in range(shard.num_record_batches))


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_loads_a_merged_cache(
    real: list[Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset(str(real[-1].path), kind, cache_dir=str(tmp_path))
    for split in SPLITS:
        assert loaded[split].with_format(None).to_list() == rows_of(real[-1], kind, split).to_pylist()
