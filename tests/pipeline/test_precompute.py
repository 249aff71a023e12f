"""A whole run: what it leaves, what a rerun does, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig, precompute
from pipeline.errors import (
    ContextTooShortError,
    DataError,
    NoPromptsError,
    NoSuchDataError,
    NoSuchTeacherError,
    NoUsableTextError,
    TeacherError,
)
from pipeline.estimate import render_plan
from pipeline.job import Job
from pipeline.run import plan_only
from pipeline.teacher.model import Teacher
from storage import Cache, open_cache, verify_cache
from storage.errors import CacheMismatchError, ConfigError
from storage.rows import beams, samples
from tests.precomputed import precomputed

Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def small_text(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "documents.txt"
    path.write_text("".join(helpers.make_text(30, seed=3)))
    return path


@pytest.fixture(scope="module")
def configure(helpers: ModuleType, teacher_dir: Path, small_text: Path) -> Callable[..., PrecomputeConfig]:
    """A run of a tenth of a second: ten shards of three kinds, several passes and batches in each."""

    def configure(out: Path, **changes: object) -> PrecomputeConfig:
        settings: dict[str, object] = {
            "shard_tokens": 600,
            "batch_tokens": 224,
            "samples": SamplesConfig(num_prompts=8, per_prompt=3, prompt_tokens=5, max_new_tokens=5),
            "beams": BeamsConfig(num_prompts=20, prompt_tokens=5, num_beams=3, num_candidates=3, max_new_tokens=3),
        }
        return dataclasses.replace(helpers.tiny_config(teacher_dir, small_text, out, **settings), **changes)

    return configure


@pytest.fixture(scope="module")
def finished(configure: Callable[..., PrecomputeConfig], tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """An undisturbed run; tests copy it before they change it."""
    return precomputed(configure(tmp_path_factory.mktemp("finished") / "cache"))


@pytest.fixture
def copied(finished: Cache, tmp_path: Path) -> Path:
    return shutil.copytree(finished.path, tmp_path / "copied")


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


def test_a_rerun_of_a_finished_cache_changes_nothing(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot
) -> None:
    before = snapshot(copied)
    written = {path: path.stat().st_mtime_ns for path in copied.rglob("*.arrow")}
    precompute(configure(copied))
    assert snapshot(copied) == before
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.arrow")} == written


@pytest.mark.parametrize("seed", range(3))
def test_a_rerun_makes_whatever_is_missing_again(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot, seed: int
) -> None:
    before, rng = snapshot(copied), random.Random(seed)
    (copied / "manifest.json").unlink()
    for commit in sorted(copied.glob("commits/*.json")):
        if rng.random() < 0.5:
            shard = copied / json.loads(commit.read_bytes())["path"]
            commit.unlink()
            if rng.random() < 0.5:
                shard.unlink()
            elif rng.random() < 0.5:
                shard.write_bytes(b"half a shard")
    (copied / "soft_targets" / ".tmp-1234-train-00000-of-00001.arrow").write_bytes(b"left over")
    if rng.random() < 0.5:
        shutil.rmtree(copied / "tokenizer")
    precompute(configure(copied))
    assert snapshot(copied) == before


@pytest.mark.parametrize("is_finished", [True, False])
def test_committed_shards_that_are_lost_or_cut_are_made_again(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot, is_finished: bool
) -> None:
    before = snapshot(copied)
    lost, cut, *_ = sorted(copied.rglob("*.arrow"))
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    (copied / "tokenizer" / "tokenizer.json").write_text("{}")
    if not is_finished:
        (copied / "manifest.json").unlink()
    precompute(configure(copied))
    assert snapshot(copied) == before


class Stop(Exception):
    """The injected fault."""


def fail_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Let `name` of a module of a run work a number of times and then raise."""
    from storage.writing import card_and_manifest, directory_destination

    modules = (directory_destination, card_and_manifest)
    module = next(module for module in modules if hasattr(module, name))
    original, count = getattr(module, name), iter(range(calls))

    def failing(*args: Any, **settings: Any) -> Any:
        if next(count, None) is None:
            raise Stop
        return original(*args, **settings)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize(
    ("name", "calls"),
    [("write_plan", 0), ("write_unless_equal", 1), ("write_commit", 0), ("write_commit", 3), ("write_shard", 5),
     ("write_commit", 7), ("write_file", 0), ("write_manifest", 0)],
)  # fmt: skip
def test_an_interrupted_run_is_incomplete_and_finishes_with_the_same_bytes(
    configure: Callable[..., PrecomputeConfig],
    finished: Cache,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    calls: int,
) -> None:
    config = configure(tmp_path / "cache")
    with monkeypatch.context() as patch:
        fail_after(patch, name, calls)
        with pytest.raises(Stop):
            precompute(config)
    assert not (config.out / "manifest.json").exists()
    precompute(config)
    assert snapshot(config.out) == snapshot(finished.path)


def test_where_a_run_was_killed_does_not_change_the_batches_that_the_teacher_sees(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    original = Teacher.hidden
    monkeypatch.setattr(
        Teacher, "hidden", lambda self, ids, lengths: (seen.append(ids.tobytes()), original(self, ids, lengths))[1]
    )
    precompute(configure(tmp_path / "undisturbed"))
    undisturbed = sorted(seen)
    assert len(undisturbed) > 10
    for calls in (1, 4):
        seen.clear()
        config = configure(tmp_path / f"killed-{calls}")
        with monkeypatch.context() as patch:
            fail_after(patch, "write_commit", calls)
            with pytest.raises(Stop):
                precompute(config)
        precompute(config)
        assert set(seen) == set(undisturbed)


CHANGES: dict[str, dict[str, object]] = {
    "config.seed": {"seed": 1},
    "block_size": {"block_size": 31},
    "config.shard_tokens": {"shard_tokens": 500},
    "config.validation_fraction": {"validation_fraction": 0.3},
    "config.document_separator": {"document_separator": "\n\n"},
    "config.max_tokens": {"max_tokens": 2000},
    "config.soft_targets.top_k": {
        "soft_targets": SoftTargetsConfig(top_k=5, tail_weight=0.05, temperatures=(1.0, 2.0))
    },
    "config.soft_targets.temperatures": {"soft_targets": SoftTargetsConfig(top_k=4, tail_weight=0.05)},
    "config.samples.top_p": {
        "samples": SamplesConfig(num_prompts=8, per_prompt=3, prompt_tokens=5, max_new_tokens=5, top_p=0.9)
    },
    "kinds": {"kinds": ("soft_targets", "samples")},
    "teacher.dtype": {"dtype": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_a_rerun_with_another_setting_is_refused_by_name_and_keeps_the_cache(
    configure: Callable[..., PrecomputeConfig], finished: Cache, snapshot: Snapshot, field: str
) -> None:
    before = snapshot(finished.path)
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(finished.path, **CHANGES[field]))
    assert caught.value.field == field
    assert caught.value.found != caught.value.wanted
    shutil.rmtree(finished.path / ".work", ignore_errors=True)
    assert snapshot(finished.path) == before


@pytest.mark.parametrize("field", ["block_size", "config.seed", "teacher.dtype", "kinds"])
def test_another_setting_is_refused_before_the_text_is_read(
    configure: Callable[..., PrecomputeConfig], finished: Cache, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr("pipeline.job.tokenize_corpus", None)
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(finished.path, **CHANGES[field]))
    assert caught.value.field == field


def test_a_refused_rerun_leaves_no_work_files_in_a_finished_cache(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot
) -> None:
    before = snapshot(copied)
    with pytest.raises(CacheMismatchError):
        precompute(configure(copied, seed=1))
    assert snapshot(copied).keys() == before.keys()


def test_a_rerun_with_another_teacher_is_refused(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, copied: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    other = helpers.make_teacher(tmp_path / teacher_dir.name, seed=1)
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(copied, teacher=str(other)))
    assert caught.value.field == "teacher.weights_sha256"


def test_a_rerun_with_other_data_is_refused(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, copied: Path, tmp_path: Path
) -> None:
    data = tmp_path / "documents.txt"
    data.write_text("".join(helpers.make_text(30, seed=4)))
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(copied, data=str(data)))
    assert caught.value.field == "data.fingerprint"


def test_a_rerun_with_another_tokenizer_is_refused(
    configure: Callable[..., PrecomputeConfig], copied: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(teacher_dir, tmp_path / teacher_dir.name)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages }}"
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CacheMismatchError) as caught:
        precompute(configure(copied, teacher=str(other)))
    assert caught.value.field == "tokenizer.sha256"


def test_settings_that_do_not_change_the_rows_may_differ(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Snapshot, teacher_dir: Path, tmp_path: Path
) -> None:
    before = snapshot(copied)
    moved = shutil.copytree(teacher_dir, tmp_path / "elsewhere" / teacher_dir.name)
    precompute(configure(copied, teacher=str(moved), quiet=False, device="auto"))
    assert snapshot(copied) == before


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


def test_a_tokenizer_with_more_ids_than_the_teacher_knows_is_refused(
    configure: Callable[..., PrecomputeConfig], helpers: ModuleType, tmp_path: Path
) -> None:
    teacher = helpers.make_teacher(tmp_path / "teacher", vocab_size=100)
    with pytest.raises(TeacherError):
        precompute(configure(tmp_path / "cache", teacher=str(teacher)))


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


def test_an_out_that_is_somebody_elses_is_left_alone(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years of work")
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(ConfigError, match="--out"):
            precompute(configure(out))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert precomputed(configure(tmp_path / "empty", kinds=("beams",))).path == tmp_path / "empty"


def test_more_shards_than_a_manifest_holds(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.beginning.MAX_SHARDS", 5)
    with pytest.raises(ConfigError, match=r"^--shard-tokens 600 makes \d+ shards, a cache holds 5; expected --shard"):
        precompute(configure(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_more_probabilities_than_the_vocabulary_has(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"top-k is 258.*257"):
        precompute(configure(tmp_path / "cache", soft_targets=SoftTargetsConfig(top_k=258)))


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"block_size": 65}, "--block-size"),
        ({"samples": SamplesConfig(prompt_tokens=40, max_new_tokens=25)}, "--samples.prompt-tokens"),
        ({"beams": BeamsConfig(prompt_tokens=1, max_new_tokens=64)}, "--beams.prompt-tokens"),
        ({"samples": SamplesConfig(prompt_column="ask", max_new_tokens=64)}, "--samples.prompt-tokens"),
    ],
)
def test_more_tokens_than_the_context_holds(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, changes: dict[str, object], setting: str
) -> None:
    with pytest.raises(ContextTooShortError) as caught:
        precompute(configure(tmp_path / "cache", **changes))
    assert caught.value.setting.startswith(setting)
    assert (caught.value.wanted, caught.value.context_length) == (65, 64)
    assert not (tmp_path / "cache").exists()


def test_the_whole_context_can_be_used(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    config = configure(
        tmp_path / "cache",
        document_separator=None,
        block_size=64,
        samples=SamplesConfig(num_prompts=3, prompt_tokens=40, max_new_tokens=24),
        beams=BeamsConfig(num_prompts=3, prompt_tokens=40, max_new_tokens=24),
    )
    assert verify_cache(precomputed(config).path).problems == ()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("empty.txt", "", NoUsableTextError),
        ("short.txt", "too short", NoUsableTextError),
        ("empty.jsonl", "", DataError),
        ("blank.jsonl", '{"text": ""}\n' * 3, NoUsableTextError),
    ],
)
def test_unusable_data_leaves_nothing_behind(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, name: str, content: str, error: type[Exception]
) -> None:
    data = tmp_path / name
    data.write_text(content)
    with pytest.raises(error):
        precompute(configure(tmp_path / "cache", data=str(data)))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["samples", "beams"])
def test_a_kind_without_a_prompt_is_refused(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, kind: str
) -> None:
    rows = [{"text": "the student learns", "ask": ""}] * 30
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"samples": SamplesConfig, "beams": BeamsConfig}[kind]
    for of_prompts, told in (
        ({"prompt_tokens": 28}, f"longer than --{kind}.prompt-tokens 28"),
        ({"prompt_column": "ask"}, "column 'ask' gives the training split none (30 prompts skipped"),
    ):
        config = configure(
            tmp_path / "cache", data=str(data), kinds=("soft_targets", kind),
            **{kind: settings(max_new_tokens=4, **of_prompts)},
        )  # fmt: skip
        with pytest.raises(NoPromptsError, match=re.escape(told)):
            precompute(config)
        assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("source", ["documents.txt", "stdlib", "directory"])
def test_plain_text_has_no_column_of_prompts(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, source: str
) -> None:
    (tmp_path / "directory").mkdir()
    for name in ("documents.txt", "directory/one.txt", "directory/two.text"):
        (tmp_path / name).write_text("the student learns alone " * 200)
    data = source if source == "stdlib" else str(tmp_path / source)
    asks = BeamsConfig(prompt_column="ask")
    with pytest.raises(ConfigError, match=r"^--beams\.prompt-column ask: .* plain text"):
        precompute(configure(tmp_path / "cache", data=data, beams=asks))
    assert not (tmp_path / "cache").exists()
    precompute(configure(tmp_path / "cache", data=str(tmp_path / "documents.txt"), beams=asks, kinds=("soft_targets",)))


def test_a_single_prompt_is_for_training(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    beams_config = BeamsConfig(num_prompts=1, prompt_tokens=5, max_new_tokens=3)
    config = configure(tmp_path / "cache", kinds=("beams",), beams=beams_config, validation_fraction=0.7)
    assert precomputed(config).num_rows("beams", "train") == 1


def test_data_and_teachers_that_are_not_there(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    with pytest.raises(NoSuchDataError):
        precompute(configure(tmp_path / "cache", data=str(tmp_path / "nothing.txt")))
    with pytest.raises(NoSuchTeacherError):
        precompute(configure(tmp_path / "cache", teacher=str(tmp_path / "nothing")))
    assert not (tmp_path / "cache").exists()


def test_a_plan_writes_nothing(configure: Callable[..., PrecomputeConfig], finished: Cache, tmp_path: Path) -> None:
    jobs: list[Job] = []
    config = dataclasses.replace(configure(tmp_path / "cache"), plan=True)
    text = plan_only(config, lambda job: (jobs.append(job), render_plan(job))[1])
    assert not (tmp_path / "cache").exists()
    assert "nothing was written" in text
    for kind, producer in jobs[0].producers.items():
        num_rows = sum(finished.num_rows(kind, split) for split in ("train", "validation"))
        assert sum(producer.num_rows(split) for split in ("train", "validation")) == num_rows
        num_shards = len([shard for shard in finished.manifest.shards if shard.key.kind == kind])
        assert f"{num_rows:,} rows in {num_shards} shards" in text


def test_a_plan_for_the_place_of_another_cache_is_refused(
    configure: Callable[..., PrecomputeConfig], finished: Cache
) -> None:
    assert "nothing was written" in plan_only(configure(finished.path, plan=True), render_plan)
    with pytest.raises(CacheMismatchError):
        plan_only(configure(finished.path, plan=True, seed=1), render_plan)


def test_tokens_are_counted_with_their_ends_of_text(
    configure: Callable[..., PrecomputeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = precomputed(configure(tmp_path / "cache", kinds=("soft_targets",), quiet=False))
    num_tokens = sum(cache.identity.data["num_tokens"].values())
    assert f"tokenize: {num_tokens:,} tokens" in capsys.readouterr().err


def test_a_plan_tells_of_documents_without_text(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": "the student learns alone " * 20}, {"text": None}, {"text": ""}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configure(tmp_path / "cache", data=str(data), document_separator=None, kinds=("soft_targets",), plan=True)
    (line,) = [line for line in plan_only(config, render_plan).splitlines() if line.startswith("skipped")]
    assert line.split()[1:] == ["2", "documents", "without", "text"]


def test_opening_needs_the_manifest(finished: Cache, copied: Path) -> None:
    assert open_cache(copied).manifest == finished.manifest
