"""push and pull: what is copied, in which order, where to, and what is not begun."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage import open_cache, verify_cache
from storage.errors import CacheMismatchError, ConfigError, IncompleteCacheError, NoCacheError, RecordError
from storage.remote.retrying import RetryPolicy
from storage.sharing.transfer import pull, push
from tests.storage.sharing.copies import COMMIT, NUM_FILES, NUM_SHARDS, QUICK, SHARD, push_at_once, remote_files
from tests.storage.stopping import snapshot


def test_a_round_trip_is_equal_byte_for_byte(source: Path, url: str, tmp_path: Path) -> None:
    pushed = push(source, url, policy=QUICK)
    pulled = pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)
    assert verify_cache(tmp_path / "back").problems == ()
    assert (pushed.num_shards, pushed.num_copied_files, pushed.num_kept_files) == (NUM_SHARDS, NUM_FILES, 0)
    assert pushed.num_copied_bytes == sum(map(len, snapshot(source).values()))
    assert (pulled.num_shards, pulled.num_copied_files, pulled.num_kept_files) == (NUM_SHARDS, NUM_SHARDS + 1, 0)


def test_a_second_round_copies_nothing(source: Path, url: str, tmp_path: Path) -> None:
    for _ in range(2):
        pushed, pulled = push(source, url, policy=QUICK), pull(url, tmp_path / "back", policy=QUICK)
    assert (pushed.num_copied_files, pushed.num_copied_bytes, pushed.num_kept_files) == (0, 0, NUM_FILES)
    assert (pulled.num_copied_files, pulled.num_copied_bytes, pulled.num_kept_files) == (0, 0, NUM_SHARDS + 1)


def test_a_cache_with_a_tokenizer_makes_the_round(cache: object, url: str, tmp_path: Path) -> None:
    push(cache.path, url, policy=QUICK)
    pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(cache.path)


def test_progress_adds_up(source: Path, url: str, tmp_path: Path) -> None:
    manifest = open_cache(source).manifest
    listed_bytes = sum(s.shard_bytes for s in manifest.shards) + sum(f.file_bytes for f in manifest.files)
    for _ in range(2):
        told: list[int] = []
        push(source, url, policy=QUICK, progress=told.append)
        assert sum(told) == 2 * listed_bytes
    told = []
    pull(url, tmp_path / "back", policy=QUICK, progress=told.append)
    assert sum(told) == listed_bytes


def test_the_order_of_publication_is_that_on_disk(source: Path, memory_puts: list[str]) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    assert memory_puts[0] == "plan.json"
    assert memory_puts[-1] == "manifest.json"
    for shard in open_cache(source).manifest.shards:
        assert memory_puts.index(shard.path) < memory_puts.index(shard.key.commit_path)
    assert sorted(memory_puts) == sorted(snapshot(source))


def test_a_local_file_that_differs_is_fetched_again(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    back = Path(shutil.copytree(source, tmp_path / "back"))
    (back / "manifest.json").unlink()
    (back / ".tmp-0123-leftover").write_text("half")
    content = (back / SHARD).read_bytes()
    (back / SHARD).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    pulled = pull("memory://bucket/cache", back, policy=QUICK)
    assert snapshot(back) == snapshot(source)
    assert pulled.num_copied_files == 1


def test_a_pull_run_again_brings_back_what_is_lost(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    back = tmp_path / "back"
    pull("memory://bucket/cache", back, policy=QUICK)
    for name, num_copied in ((SHARD, 1), ("README.md", 1), (COMMIT, 0), ("plan.json", 0)):
        (back / name).unlink()
        assert pull("memory://bucket/cache", back, policy=QUICK).num_copied_files == num_copied
        assert snapshot(back) == snapshot(source)
    (back / "README.md").write_text("cut")
    pull("memory://bucket/cache", back, policy=QUICK)
    assert snapshot(back) == snapshot(source)


def test_a_readme_of_something_else_stays(source: Path, url: str, tmp_path: Path) -> None:
    target = fsspec.filesystem(url.partition(":")[0])
    target.makedirs(url, exist_ok=True)
    target.pipe_file(f"{url}/README.md", b"my notes")
    with pytest.raises(ConfigError, match=r"^.*bucket/cache: holds a README|remote/cache: holds a README"):
        push(source, url, policy=QUICK)
    assert target.cat_file(f"{url}/README.md") == b"my notes"
    assert not target.exists(f"{url}/plan.json")
    target.rm_file(f"{url}/README.md")
    push(source, url, policy=QUICK)
    target.rm_file(f"{url}/plan.json")
    push(source, url, policy=QUICK)  # the README.md there is a cache's own
    assert target.exists(f"{url}/plan.json")


@pytest.mark.parametrize("is_finished", [True, False])
def test_another_cache_is_not_mixed_in(source: Path, another: Path, tmp_path: Path, is_finished: bool) -> None:
    push(another, "memory://bucket/cache", policy=QUICK)
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    if not is_finished:
        MemoryFileSystem().rm("/bucket/cache/manifest.json")
        (tmp_path / "back" / "manifest.json").unlink()
    there, here = remote_files(), snapshot(tmp_path / "back")
    with pytest.raises(CacheMismatchError, match=r"memory://bucket/cache: .*teacher\.id = 'somebody'.*'nobody'"):
        push(source, "memory://bucket/cache", policy=QUICK)
    assert remote_files() == there
    push(source, "memory://elsewhere/cache", policy=QUICK)
    with pytest.raises(CacheMismatchError, match=r"back: .*teacher\.id = 'somebody'.*'nobody'"):
        pull("memory://elsewhere/cache", tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == here


def test_equal_plans_with_other_shards_are_another_cache(source: Path, tmp_path: Path, forge: SimpleNamespace) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    (source / SHARD).write_bytes((source / SHARD).read_bytes()[:-1] + b"?")
    forge.accept_shard(source, SHARD)
    with pytest.raises(CacheMismatchError, match=r"shards\[1\]\.sha256"):
        push(source, "memory://bucket/cache", policy=QUICK)


def test_a_pull_goes_only_where_nothing_else_is(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"target: holds something that is not a cache"):
        pull("memory://bucket/cache", target, policy=QUICK)
    assert list(snapshot(target)) == ["thesis.tex"]
    with pytest.raises(ConfigError, match=r"thesis\.tex: not a directory"):
        pull("memory://bucket/cache", target / "thesis.tex", policy=QUICK)


def test_two_pulls_do_not_share_a_directory(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    (tmp_path / "back").mkdir()
    held = os.open(tmp_path / "back", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another pull"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    os.close(held)
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)


def test_what_cannot_be_pushed_is_not_begun(source: Path, tmp_path: Path, forge: SimpleNamespace) -> None:
    with pytest.raises(NoCacheError):
        push(tmp_path / "nothing", "memory://bucket/cache")
    forge.record(source / COMMIT, lambda record: record.update(num_tokens=1))
    with pytest.raises(RecordError, match=COMMIT):
        push(source, "memory://bucket/cache")
    (source / "manifest.json").unlink()
    with pytest.raises(IncompleteCacheError):
        push(source, "memory://bucket/cache")
    assert remote_files() == {}
    for url in ("nosuchthing://bucket/cache", "s3://"):
        with pytest.raises(ConfigError):
            pull(url, tmp_path / "back")
    with pytest.raises(ConfigError, match="num_connections is 0"):
        pull("memory://bucket/cache", tmp_path / "back", num_connections=0)


def test_a_bug_in_a_thread_keeps_its_traceback_and_stops_the_rest(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    waiting = threading.Event()

    def broken(self: MemoryFileSystem, path: str, **limits: int) -> bytes:
        if path.endswith(SHARD):
            assert waiting.wait(30)
            raise KeyError("bug")
        if path.endswith(".arrow"):
            waiting.set()
            raise OSError("tried again for twenty seconds, unless the others stop")
        return MemoryFileSystem.store[path].getvalue()

    monkeypatch.setattr(MemoryFileSystem, "cat_file", broken)
    policy = RetryPolicy(deadline_s=10_000, first_wait_s=10_000, longest_wait_s=10_000)
    with pytest.raises(KeyError, match="bug"):
        pull("memory://bucket/cache", tmp_path / "back", policy=policy)
    assert not any(thread.name == "teachonce-transfer" for thread in threading.enumerate())


def test_two_pushes_of_equal_caches_race(source: Path, pristine: Path, tmp_path: Path) -> None:
    assert push_at_once([source, pristine], f"file://{tmp_path}/remote") == []
    assert snapshot(tmp_path / "remote") == snapshot(source)
