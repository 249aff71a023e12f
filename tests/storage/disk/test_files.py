from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.disk.files import publishing, write_file
from storage.errors import WriteRefusedError

OLD, NEW = b"what stood here before", b"what is written now" * 1000


@pytest.fixture(params=[False, True], ids=["new file", "over an earlier file"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "directory" / "file.bin"
    if request.param:
        write_file(path, OLD)
    return path


def publish(target: Path, error: BaseException | None = None) -> None:
    with publishing(target) as file:
        file.write(NEW)
        file.write(NEW)
        if error is not None:
            raise error


def assert_untouched(target: Path, existed: bool) -> None:
    found = {path.name: path.read_bytes() for path in target.parent.iterdir()} if target.parent.exists() else {}
    assert found == ({target.name: OLD} if existed else {})


def test_a_published_file_holds_what_was_written_and_knows_its_hash(target: Path) -> None:
    with publishing(target) as file:
        for start in range(0, len(NEW), 700):
            file.write(NEW[start : start + 700])
    assert target.read_bytes() == NEW
    assert (file.num_bytes, file.sha256) == (len(NEW), hashlib.sha256(NEW).hexdigest())
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_nothing_is_visible_under_the_name_before_the_end(target: Path) -> None:
    existed = target.exists()
    with publishing(target) as file:
        file.write(NEW)
        file.flush()
        assert (target.read_bytes() if existed else target.exists()) == (OLD if existed else False)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
def test_an_exception_inside_leaves_neither_file_nor_temporary(target: Path, error: BaseException) -> None:
    existed = target.exists()
    with pytest.raises(type(error)):
        publish(target, error)
    assert_untouched(target, existed)


def test_an_operating_system_error_that_is_no_write_keeps_its_name(target: Path) -> None:
    existed = target.exists()
    with pytest.raises(FileNotFoundError, match=r"corpus\.txt"):
        publish(target, FileNotFoundError(errno.ENOENT, "No such file or directory", "corpus.txt"))
    assert_untouched(target, existed)


class FullDisk:
    """Makes the n-th call of a function fail as a full disk does."""

    def __init__(self, original: Callable[..., Any], number: int, error: int) -> None:
        self._original, self._left, self._error = original, number, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise OSError(self._error, os.strerror(self._error))
        return self._original(*args, **kwargs)


class FileOnFullDisk:
    """A file whose second write fails."""

    def __init__(self, path: Path, mode: str, error: int) -> None:
        self._file = open(path, mode)  # noqa: SIM115
        self.write = FullDisk(self._file.write, 2, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_a_refused_step_is_a_full_disk_and_publishes_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: int
) -> None:
    existed = target.exists()
    if step == "open":
        monkeypatch.setattr(Path, "open", FullDisk(Path.open, 1, error))
    elif step == "write":
        monkeypatch.setattr(Path, "open", lambda path, mode: FileOnFullDisk(path, mode, error))
    else:
        monkeypatch.setattr(os, step, FullDisk(getattr(os, step), 1, error))
    with pytest.raises(WriteRefusedError, match=os.strerror(error)) as caught:
        publish(target)
    monkeypatch.undo()
    assert caught.value.path == str(target)
    assert_untouched(target, existed)


def test_a_directory_in_the_way_is_a_refused_write(tmp_path: Path) -> None:
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(WriteRefusedError, match="directory"):
        write_file(tmp_path / "file.bin", NEW)
    assert list(tmp_path.iterdir()) == [tmp_path / "file.bin"]


def test_a_file_in_place_of_the_directory_is_a_refused_write(tmp_path: Path) -> None:
    (tmp_path / "directory").write_bytes(OLD)
    with pytest.raises(WriteRefusedError):
        write_file(tmp_path / "directory" / "file.bin", NEW)
    assert (tmp_path / "directory").read_bytes() == OLD


def test_the_file_is_on_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def logged_fsync(descriptor: int) -> None:
        steps.append("fsync directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")
        fsync(descriptor)

    def logged_replace(*paths: Any) -> None:
        steps.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    write_file(tmp_path / "file.bin", NEW)
    assert steps == ["fsync file", "rename", "fsync directory"]


def test_a_real_limit_on_file_size_is_a_full_disk(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    write_file(tmp_path / "file.bin", OLD)
    code = """
import pathlib, resource, signal, sys
from storage.errors import WriteRefusedError
from storage.disk.files import write_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_file(pathlib.Path(sys.argv[1]), bytes(200_000))
except WriteRefusedError as error:
    print(error)
"""
    done = run_python(code, tmp_path / "file.bin")
    assert "File too large" in done.stdout, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file.bin": OLD}


def test_a_shard_that_meets_a_full_disk_is_not_published(
    small_cache: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    code = """
import pathlib, resource, signal, sys
import storage
from storage.errors import WriteRefusedError
from storage.shards.shard import write_shard

cache = storage.open_cache(sys.argv[1])
batches = list(cache.record_batches("soft_targets", "train"))
record = cache.manifest.shards[0]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    write_shard(pathlib.Path(sys.argv[2]), cache.identity, record.key, 0, batches)
except WriteRefusedError as error:
    print(error)
"""
    out = tmp_path / "out"
    done = run_python(code, small_cache, out)
    assert "File too large" in done.stdout, done.stderr
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_threads_that_write_different_files_do_not_meet(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(5):
            write_file(tmp_path / f"{number}.bin", bytes([number]) * 10_000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {f"{number}.bin": bytes([number]) * 10_000 for number in range(8)}


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """As two hosts whose processes have the same number, on a shared file system, would."""
    path = tmp_path / "file.bin"
    with publishing(path) as first:
        first.write(OLD)
        with publishing(path) as second:
            second.write(NEW)
        assert path.read_bytes() == NEW
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EACCES, "mend that")]
)
def test_what_to_do_follows_from_the_refusal(code: int, remedy: str) -> None:
    assert f": {remedy} and run" in str(WriteRefusedError("path", os.strerror(code)))
    assert f": {remedy} and run" in str(WriteRefusedError("path", f"IoError: {os.strerror(code)} (os error {code})"))
