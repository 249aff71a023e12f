"""What merge refuses, naming the field: caches of other teachers or settings, and the same rows twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import CacheMismatchError, ConfigError, IncompleteCacheError, MergeError, NoCacheError
from storage.sharing.merging import merge
from tests.storage.sharing.merges import CONFIG, SHARED_CONFIG, SIZES, Build, assert_holds, config_with, data_of
from tests.storage.stopping import snapshot

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
           "messages_column", "prompt_column", "completion_column", "on_bad_row",
           "samples.num_prompts", "samples.prompt_column", "beams.num_prompts")),
        {"config": config_with("soft_targets.scalar_mantissa_bits", 6)},
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


@pytest.mark.parametrize("is_merged", [False, True])
def test_two_seeds_over_one_text_are_told_by_their_seeds(build: Build, tmp_path: Path, is_merged: bool) -> None:
    one = build("a")
    if is_merged:
        one = merge([one, build("c")], tmp_path / "both").path
    other = build("b", data=data_of("a"), config=config_with("seed", 5))
    with pytest.raises(MergeError, match=r"the same text with seed 5 instead of 0; .* --samples\.per-prompt") as caught:
        merge([one, other], tmp_path / "out")
    assert caught.value.field == "data.fingerprint"


def test_one_seed_over_one_text_is_told_without_a_seed(build: Build, tmp_path: Path) -> None:
    one, other = build("a"), build("b", data=data_of("a"))
    with pytest.raises(MergeError) as caught:
        merge([one, other], tmp_path / "out")
    assert (caught.value.field, caught.value.wanted) == ("data.fingerprint", f"other data than in {one}")
