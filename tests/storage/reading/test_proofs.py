"""Notes of checked rows: they spare a second check of the same bytes by the same rules, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import RowStream, open_cache, verify_cache
from storage.errors import RowError
from storage.reading import checks, proofs
from storage.reading.proofs import Proofs
from tests.storage.reading.forging import shard, snapshot, values
from tests.storage.reading.readers import watched_checks


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home" / "notes"
    monkeypatch.setattr(proofs, "notes_path", lambda: path)
    return path


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watched_checks(monkeypatch)


def read_rows(cache_dir: Path, num_rows: int | None = None, **settings: int) -> list[int]:
    """The row ids of an epoch of a new stream, or of its first rows."""
    stream = RowStream(open_cache(cache_dir), "soft_targets", "train", **({"batch_rows": 1, "seed": 0} | settings))
    batches = stream.batches()
    ids = [batch.rows["row_id"][0].as_py() for batch in islice(batches, num_rows or stream.num_rows)]
    batches.close()
    return ids


def test_a_second_stream_over_the_same_bytes_checks_none_of_them(
    pristine: Path, tmp_path: Path, notes: Path, checked: list[str]
) -> None:
    before = snapshot(pristine)
    first = read_rows(pristine)
    num_checked = len(checked)
    assert num_checked == len(set(checked)) > 1
    elsewhere = Path(shutil.copytree(pristine, tmp_path / "elsewhere"))
    assert read_rows(elsewhere) == read_rows(pristine) == first
    assert len(checked) == num_checked
    assert snapshot(pristine) == before
    assert notes.stat().st_size <= proofs._NUM_SLOTS * proofs._NOTE_BYTES


def test_a_shard_of_which_some_rows_were_not_read_is_not_noted(
    pristine: Path, notes: Path, checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as only_needed:
        only_needed.setattr(checks, "_TOGETHER_BYTES", 1)
        only_needed.setattr(checks.Checks, "run_rest", lambda *_: None)
        read_rows(pristine, 1)
        read_rows(pristine, rank=1, world_size=16, batch_rows=16, num_rows=1)
    assert len(checked) == 2
    checked.clear()
    read_rows(pristine)
    assert len(set(checked)) == len(checked) > 1


def test_a_shard_that_was_refused_is_refused_again(stranger: Path, forge: SimpleNamespace, notes: Path) -> None:
    values("soft_targets", "entropy", lambda rows: rows[0].__setitem__(0, -1.0))(stranger, forge)
    for _ in range(2):
        with pytest.raises(RowError, match="entropy"):
            read_rows(stranger)


def test_verify_checks_every_row_whatever_is_noted(stranger: Path, forge: SimpleNamespace, notes: Path) -> None:
    values("soft_targets", "entropy", lambda rows: rows[0].__setitem__(0, -1.0))(stranger, forge)
    cache = open_cache(stranger)
    for record in cache.manifest.shards:
        Proofs().add(cache.identity, record)
    read_rows(stranger)
    assert [type(problem) for problem in verify_cache(stranger).problems] == [RowError]


def test_a_stream_over_a_verified_cache_checks_no_row(pristine: Path, notes: Path, checked: list[str]) -> None:
    assert not verify_cache(pristine).problems
    assert checked
    checked.clear()
    read_rows(pristine)
    assert not checked


@pytest.mark.parametrize("what", ["a value", "a count"])
def test_verify_notes_no_shard_with_a_problem(what: str, stranger: Path, forge: SimpleNamespace, notes: Path) -> None:
    if what == "a value":
        values("soft_targets", "entropy", lambda rows: rows[0].__setitem__(0, -1.0))(stranger, forge)
    else:
        first = open_cache(stranger).shards("soft_targets", "train")[0]
        shard(first.path, label_nll_sum_nats=first.label_nll_sum_nats + 1)(stranger, forge)
    assert [type(problem) for problem in verify_cache(stranger).problems] == [RowError]
    cache = open_cache(stranger)
    first, *others = cache.shards("soft_targets", "train")
    assert not Proofs().holds(cache.identity, first)
    assert all(Proofs().holds(cache.identity, record) for record in others)


def test_a_note_is_of_these_bytes_at_this_place_by_these_rules_of_this_cache(
    pristine: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(pristine)
    identity, record = cache.identity, cache.manifest.shards[0]
    known = Proofs()
    assert not known.holds(identity, record)
    known.add(identity, record)
    assert known.holds(identity, record)
    assert Proofs().holds(identity, dataclasses.replace(record, num_tokens=7)), "no rule of a row looks at it"
    for change in ({"sha256": "0" * 64}, {"first_row_id": 1}, {"num_rows": 7}):
        assert not known.holds(identity, dataclasses.replace(record, **change)), change
    for change in ({"vocab_size": 51}, {"record_batch_rows": 3}, {"temperatures": (1.0,)}, {"config": {}}):
        assert not known.holds(dataclasses.replace(identity, **change), record), change
    monkeypatch.setattr(proofs, "_rules_sha256", lambda: "others")
    assert not known.holds(identity, record)


def test_a_later_note_may_take_the_place_of_an_earlier_one(
    pristine: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "_NUM_SLOTS", 1)
    cache, known = open_cache(pristine), Proofs()
    first, second = cache.manifest.shards[:2]
    for record, other in ((first, second), (second, first)):
        known.add(cache.identity, record)
        assert known.holds(cache.identity, record)
        assert not known.holds(cache.identity, other)
    assert notes.stat().st_size == proofs._NOTE_BYTES


def test_writers_at_one_time_lose_nothing(pristine: Path, notes: Path) -> None:
    cache = open_cache(pristine)
    records = [dataclasses.replace(cache.manifest.shards[0], first_row_id=i) for i in range(200)]
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda record: Proofs().add(cache.identity, record), records))
    assert sum(Proofs().holds(cache.identity, record) for record in records) == 200


def flip(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 1 if byte else 0 for byte in path.read_bytes()))


def let_others_write(path: Path) -> None:
    path.chmod(0o622)


def put_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_file_in_the_way(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.touch()


SPOILERS = [
    flip, lambda path: os.truncate(path, 5), lambda path: path.unlink(), let_others_write, put_link, put_directory,
    put_pipe, put_file_in_the_way,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILERS)
def test_notes_that_are_damaged_or_not_this_user_s_alone_cost_one_more_check(
    pristine: Path, notes: Path, checked: list[str], spoil: Callable[[Path], object]
) -> None:
    rows = read_rows(pristine)
    num_batches = len(checked)
    checked.clear()
    spoil(notes)
    assert read_rows(pristine) == rows
    assert len(checked) == num_batches


def test_a_user_without_a_cache_directory_reads_as_ever(
    pristine: Path, checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(proofs, "notes_path", no_home)
    assert read_rows(pristine) == read_rows(pristine)
    assert len(checked) == 2 * len(set(checked)) > 0
