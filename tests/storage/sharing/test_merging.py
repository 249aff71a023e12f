from __future__ import annotations

import copy
import errno
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import RowStream, open_cache, verify_cache
from storage.errors import (
    CacheMismatchError,
    ConfigError,
    HashMismatchError,
    IncompleteCacheError,
    MergeError,
    MissingFileError,
    NoCacheError,
    RecordError,
    WriteRefusedError,
)
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.records.manifest import read_manifest
from storage.rows import beams, samples, soft_targets
from storage.rows.kinds import KINDS
from storage.sharing.merging import merge
from tests.places import ROOT
from tests.precomputed import precomputed
from tests.storage.stopping import snapshot, stop_everywhere

CONFIG = {
    "block_size": 6,
    "seed": 0,
    "max_tokens": None,
    "soft_targets": {"top_k": 3, "tail_weight": 0.25},
    "samples": {"per_prompt": 2, "num_prompts": 3, "prompt_column": None},
    "beams": {"length_penalty": 1.0, "num_prompts": 3},
}
SHARED_CONFIG = {
    "block_size": 6,
    "soft_targets": {"top_k": 3, "tail_weight": 0.25},
    "samples": {"per_prompt": 2},
    "beams": {"length_penalty": 1.0},
}
SIZES = {
    "a": {"soft_targets": {"train": [8, 7], "validation": [3]}, "samples": {"train": [4, 2]}, "beams": {"train": [5]}},
    "b": {"soft_targets": {"train": [4, 1]}, "samples": {"train": [6]}, "beams": {"train": [2], "validation": [1]}},
    "c": {"soft_targets": {"train": [9], "validation": [4, 4]}, "samples": {}, "beams": {"train": [4, 1]}},
}
FEW = {"soft_targets": {"train": [1]}}

Build = Callable[..., Path]


def data_of(name: str, **changes: object) -> dict[str, Any]:
    """What a cache of the text `name` says about its data."""
    facts: dict[str, Any] = {
        "source": f"{name}.txt",
        "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "licence": "mit",
        "packing": "end to end",
        "num_documents": 10 + ord(name[0]),
        "num_tokens": {"train": 100, "validation": ord(name[0])},
        "longest_prompt_tokens": {"samples": 10 + ord(name[0]) % 7, "beams": 13},
    }
    return facts | changes


def config_with(path: str, value: object) -> dict[str, Any]:
    """CONFIG with the setting at a dotted path changed."""
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    *sections, name = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return config


def refusing(error_number: int) -> Callable[..., None]:
    """What the operating system does when it refuses."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(error_number, os.strerror(error_number))

    return refuse


def rows_of(cache: Cache, kind: str, split: str) -> pa.Table:
    batches = cache.record_batches(kind, split) if cache.num_rows(kind, split) else []
    return pa.Table.from_batches(batches, schema=cache.identity.schema(kind))


def assert_holds(merged: Path, sources: list[Path]) -> None:
    """The merged cache is whole and holds the sources' rows one after the other."""
    assert verify_cache(merged).problems == ()
    caches = [open_cache(source) for source in sources]
    for kind, split in itertools.product(KINDS, SPLITS):
        expected = pa.concat_tables([rows_of(cache, kind, split) for cache in caches])
        assert rows_of(open_cache(merged), kind, split).equals(expected), (kind, split)


@pytest.fixture(scope="module", autouse=True)
def _fast_disk() -> Iterator[None]:
    """Many small caches are written here, and none is to outlive a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def _pristine(make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("pristine")
    return {n: make.cache(base / n, SIZES[n], ord(n), data=data_of(n), config=CONFIG) for n in SIZES}


@pytest.fixture
def build(make: SimpleNamespace, _pristine: dict[str, Path], tmp_path: Path) -> Build:
    """Makes cache `name`, with rows of its own from data of its own: as in SIZES, or a smaller one with changes."""

    def build(name: str, sizes: dict[str, Any] = FEW, **changes: Any) -> Path:
        if sizes is FEW and not changes:
            return Path(shutil.copytree(_pristine[name], tmp_path / name))
        facts = {"data": data_of(name), "config": CONFIG} | changes
        return Path(make.cache(tmp_path / name, sizes, ord(name), **facts))

    return build


@pytest.fixture
def two(build: Build) -> list[Path]:
    return [build("a"), build("b")]


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


def test_a_disk_that_refuses_links_and_files_is_full(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(two, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refusing(errno.ENOSPC))
        patch.setattr(os, "replace", refusing(errno.ENOSPC))
        with pytest.raises(WriteRefusedError, match="No space left"):
            merge(two, tmp_path / "out")
    merge(two, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


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


TEACHER = {
    "id": "nobody", "revision": None, "architecture": "NoModel", "num_parameters": 0, "context_length": 64,
    "dtype": "float32", "weights_bytes": 0, "weights_sha256": "0" * 64,
}  # fmt: skip
TOKENIZER = {"size": 50, "sha256": "0" * 64, "eos_token_id": None}
DIFFERENT = [
    ("teacher.weights_sha256", {"teacher": TEACHER | {"weights_sha256": "1" * 64}}),
    ("teacher.weights_bytes", {"teacher": TEACHER | {"weights_bytes": 8}}),
    ("teacher.dtype", {"teacher": TEACHER | {"dtype": "bfloat16"}}),
    ("teacher.context_length", {"teacher": TEACHER | {"context_length": 32}}),
    ("teacher.architecture", {"teacher": TEACHER | {"architecture": "Other"}}),
    ("teacher.num_parameters", {"teacher": TEACHER | {"num_parameters": 1}}),
    ("tokenizer.sha256", {"tokenizer": TOKENIZER | {"sha256": "1" * 64}}),
    ("tokenizer.eos_token_id", {"tokenizer": TOKENIZER | {"eos_token_id": 0}}),
    ("vocab_size", {"vocab_size": 60}),
    ("block_size", {"block_size": 5}),
    ("record_batch_rows", {"record_batch_rows": 8}),
    ("temperatures", {"temperatures": (1.0,)}),
    ("temperatures", {"temperatures": (2.0, 1.0)}),
    ("config.soft_targets.top_k", {"config": config_with("soft_targets.top_k", 4)}),
    ("config.soft_targets.tail_weight", {"config": config_with("soft_targets.tail_weight", 0.125)}),
    ("config.samples.per_prompt", {"config": config_with("samples.per_prompt", 1)}),
    ("config.beams.length_penalty", {"config": config_with("beams.length_penalty", 0.5)}),
    ("config.block_size", {"config": config_with("block_size", 7)}),
    ("config.unheard_of", {"config": config_with("unheard_of", 1)}),
    ("data.packing", {"data": data_of("b", packing="padded")}),
]


@pytest.mark.parametrize(("field", "changes"), DIFFERENT, ids=lambda value: value if isinstance(value, str) else "")
def test_a_cache_that_differs_is_refused_by_field(
    build: Build, tmp_path: Path, field: str, changes: dict[str, Any]
) -> None:
    one, other = build("a"), build("b", **changes)
    for caches in ([one, other], [other, one]):
        with pytest.raises(MergeError) as caught:
            merge(caches, tmp_path / "out")
        assert caught.value.field == field
        assert str(caught.value).startswith(f"{caches[1]}: ")
        assert caught.value.found != caught.value.wanted
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        *({"config": config_with(name, "other")} for name in
          ("seed", "max_tokens", "document_separator", "shard_tokens", "text_column", "validation_fraction",
           "samples.num_prompts", "samples.prompt_column", "beams.num_prompts")),
        {"teacher": TEACHER | {"id": "elsewhere", "revision": "main"}},
        {"software": {"teachonce": "0.9"}},
    ],
)  # fmt: skip
def test_what_says_where_the_rows_came_from_may_differ(build: Build, tmp_path: Path, changes: dict[str, Any]) -> None:
    sources = [build("a"), build("b", **changes)]
    merged = merge(sources, tmp_path / "out")
    assert_holds(merged.path, sources)
    assert merged.identity.teacher["id"] == "nobody"


def test_kinds_that_only_some_hold_are_all_there(build: Build, tmp_path: Path) -> None:
    only = {"soft_targets": CONFIG["soft_targets"]}
    sources = [build("a", {"soft_targets": {"train": [5]}}, config=only), build("b", config=CONFIG | {"seed": 0})]
    with pytest.raises(MergeError, match=r"config\.block_size"):
        merge(sources, tmp_path / "out")
    shared = {name: value for name, value in CONFIG.items() if name not in ("samples", "beams")}
    sources[0] = build("c", {"soft_targets": {"train": [5]}}, config=shared)
    merged = merge(sources, tmp_path / "out")
    assert_holds(merged.path, sources)
    assert merged.identity.config == SHARED_CONFIG


def test_a_kind_that_the_first_cache_lacks_must_still_agree(build: Build, tmp_path: Path) -> None:
    without = {name: value for name, value in CONFIG.items() if name != "samples"}
    sizes = {"soft_targets": {"train": [5]}}
    sources = [build("a", sizes, config=without), build("b"), build("c", config=config_with("samples.per_prompt", 9))]
    with pytest.raises(MergeError, match=r"config\.samples\.per_prompt"):
        merge(sources, tmp_path / "out")


def test_the_same_data_twice_is_refused(build: Build, tmp_path: Path) -> None:
    one = build("a")
    copied = Path(shutil.copytree(one, tmp_path / "copied"))
    again = build("b", data=data_of("a"))
    for other in (one, copied, again):
        with pytest.raises(MergeError, match=r"data\.fingerprint"):
            merge([one, other], tmp_path / "out")
    merged = merge([one, build("c")], tmp_path / "merged").path
    for caches in ([merged, one], [one, merged], [merged, merged]):
        with pytest.raises(MergeError, match=r"data\.fingerprint"):
            merge(caches, tmp_path / "out")


def test_the_same_rows_under_another_name_are_refused(make: SimpleNamespace, build: Build, tmp_path: Path) -> None:
    one = build("a")
    renamed = make.cache(tmp_path / "b", SIZES["a"], ord("a"), data=data_of("b"), config=CONFIG)
    with pytest.raises(MergeError, match="sha256 of a soft_targets train shard"):
        merge([one, renamed], tmp_path / "out")


def test_a_cache_without_a_fingerprint_is_refused(build: Build, tmp_path: Path) -> None:
    nameless = build("b", data=data_of("b", fingerprint=None))
    with pytest.raises(MergeError, match=r"data\.fingerprint"):
        merge([build("a"), nameless], tmp_path / "out")


@pytest.mark.parametrize("num_caches", [0, 1])
def test_fewer_than_two_caches_are_refused(two: list[Path], tmp_path: Path, num_caches: int) -> None:
    with pytest.raises(ConfigError, match=f"given {num_caches} caches, expected two or more"):
        merge(two[:num_caches], tmp_path / "out")


def test_an_out_that_is_something_else_is_refused_and_left_alone(build: Build, tmp_path: Path) -> None:
    sources = [build("a"), build("b")]
    file, strange, other = tmp_path / "file", tmp_path / "strange", build("c")
    file.write_text("mine")
    strange.mkdir()
    (strange / "letters.txt").write_text("mine")
    before = snapshot(tmp_path)
    for out, error in (
        (file, ConfigError), (strange, ConfigError), (other, CacheMismatchError), (sources[0], ConfigError),
    ):  # fmt: skip
        with pytest.raises(error, match=str(out)):
            merge(sources, out)
    assert snapshot(tmp_path) == before


def test_what_is_no_finished_cache_is_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NoCacheError):
        merge([*two, tmp_path / "nowhere"], tmp_path / "out")
    (two[1] / "manifest.json").unlink()
    with pytest.raises(IncompleteCacheError, match=str(two[1])):
        merge(two, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["soft_targets/train-00001-of-00002.arrow", "beams/validation-00000-of-00001.arrow", "README.md"]
)
def test_a_damaged_source_is_refused_and_a_repaired_one_merged(two: list[Path], tmp_path: Path, name: str) -> None:
    merge(two, tmp_path / "undisturbed")
    path = two[1] / name
    whole = path.read_bytes()
    # A file of its own: the other merged cache shares the old one.
    path.unlink()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(HashMismatchError, match=str(path)):
        merge(two, tmp_path / "out")
    path.unlink()
    with pytest.raises(MissingFileError, match=str(path)):
        merge(two, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    path.write_bytes(whole)
    merge(two, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_a_merge_stopped_at_any_publication_ends_with_the_same_bytes(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, links: bool
) -> None:
    sizes = {"soft_targets": {"train": [5, 1]}, "beams": {"validation": [2]}}
    two = [make.cache(tmp_path / name, sizes, ord(name), data=data_of(name), config=CONFIG) for name in "ab"]
    if not links:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    expected = snapshot(merge(two, tmp_path / "undisturbed").path)
    publishers = ("link", "replace") if links else ("replace",)
    num_publications = stop_everywhere(
        lambda out: merge(two, out), tmp_path, expected, after=after, publishers=publishers
    )
    assert num_publications == len(expected), "every file is published once"


def test_a_merge_killed_again_and_again_ends_with_the_same_bytes(two: list[Path], tmp_path: Path) -> None:
    merge(two, tmp_path / "undisturbed")
    code = """
import itertools, os, signal, sys
from pathlib import Path
from storage.sharing.merging import merge
*sources, out = map(Path, sys.argv[1:])
for lifetime in itertools.count(1):
    if os.fork() == 0:
        left = itertools.count(lifetime % 3 + 1, -1)
        for name in ("link", "replace"):
            def mortal(*arguments, original=getattr(os, name), **options):
                if not next(left):
                    os.kill(os.getpid(), signal.SIGKILL)
                original(*arguments, **options)
            setattr(os, name, mortal)
        merge(sources, out)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.wait()[1]) == 0:
        break
    assert lifetime < 99
print(lifetime)
"""
    command = [sys.executable, "-c", code, *map(str, two), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


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


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def change_source(index: int, **changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["data"]["sources"][index].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["data"].update(sources=None),
        lambda content: content["data"].update(sources={}),
        lambda content: content["data"].update(sources=[]),
        lambda content: content["data"]["sources"].pop(),
        lambda content: content["data"]["sources"].__setitem__(0, "a"),
        lambda content: content["data"]["sources"][0].pop("fingerprint"),
        lambda content: content["data"]["sources"][0].pop("planned_shards"),
        lambda content: content["data"]["sources"].append(content["data"]["sources"][0]),
        change_source(0, source=1),
        change_source(0, config=[]),
        change_source(0, software="x"),
        change_source(0, fingerprint=data_of("b")["fingerprint"]),
        change_source(0, planned_shards={"soft_targets": {"train": -1}}),
        change_source(0, planned_shards={"soft_targets": {"train": "2"}}),
        change_source(0, planned_shards={"soft_targets": {"train": 10**30}}),
        change_source(0, planned_shards={"logits": {}}),
        change_source(0, planned_shards={}),
    ],
)
def test_malformed_sources_are_refused(
    two: list[Path], forge: SimpleNamespace, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    out = merge(two, tmp_path / "out").path
    forge.identity(out, change)
    with pytest.raises(RecordError, match=r"sources|planned_shards"):
        read_manifest(out)


def test_sources_whose_shards_are_counted_wrongly_are_refused(
    two: list[Path], forge: SimpleNamespace, tmp_path: Path
) -> None:
    out = merge(two, tmp_path / "out").path

    def move_a_shard(content: dict[str, Any]) -> None:
        one, other = (source["planned_shards"]["soft_targets"] for source in content["data"]["sources"])
        one["train"], other["train"] = one["train"] - 1, other["train"] + 1

    forge.identity(out, move_a_shard)
    with pytest.raises(RecordError, match="overlap or do not follow"):
        read_manifest(out)


def test_shards_with_the_same_rows_are_refused(two: list[Path], forge: SimpleNamespace, tmp_path: Path) -> None:
    out = merge(two, tmp_path / "out").path
    first, twin = (s for s in read_manifest(out).shards_of("soft_targets", "train") if s.first_row_id == 0)
    forge.shard_record(out, twin.path, sha256=first.sha256)
    with pytest.raises(RecordError, match="holds the rows of another shard"):
        read_manifest(out)


def test_row_ids_begin_again_only_with_a_source(small_cache: Path, forge: SimpleNamespace) -> None:
    path = "soft_targets/train-00001-of-00003.arrow"
    forge.shard_record(small_cache, path, first_row_id=0)
    with pytest.raises(RecordError, match="overlap or do not follow"):
        read_manifest(small_cache)
