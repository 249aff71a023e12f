"""Packing and unpacking tell how far they are; stopped, killed or refused by the disk they leave what was there."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import open_cache
from storage.disk.files import TEMPORARY_PREFIX
from storage.errors import WriteRefusedError
from storage.sharing.archive import pack, unpack
from tests.storage.stopping import snapshot


def test_progress_adds_up(small_cache: Path, tmp_path: Path) -> None:
    told: list[int] = []
    pack(small_cache, tmp_path / "a.tar.zst", told.append)
    manifest = open_cache(small_cache).manifest
    assert sum(told) == sum((small_cache / item.path).stat().st_size for item in (*manifest.files, *manifest.shards))
    told.clear()
    unpack(tmp_path / "a.tar.zst", tmp_path / "restored", told.append)
    assert sum(told) == (tmp_path / "a.tar.zst").stat().st_size


class Stop:
    """A progress that raises at its n-th call."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.left, self.error = number, error

    def __call__(self, num_bytes: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


def num_calls(work: Callable[[Callable[[int], object]], object]) -> int:
    told: list[int] = []
    work(told.append)
    return len(told)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "over an earlier file"])
def test_a_stopped_pack_leaves_what_was_there(
    small_cache: Path, packed_file: Path, tmp_path: Path, error: BaseException, is_there: bool
) -> None:
    earlier = packed_file.read_bytes() if is_there else None
    file = tmp_path / "out" / "a.tar.zst"
    for number in range(1, num_calls(lambda tell: pack(small_cache, file, tell)) + 1):
        file.unlink(missing_ok=True)
        if earlier:
            file.write_bytes(earlier)
        with pytest.raises(type(error)):
            pack(small_cache, file, Stop(number, error))
        assert snapshot(file.parent) == ({file.name: earlier} if earlier else {})


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()], ids=repr)
def test_a_stopped_unpack_leaves_nothing(packed_file: Path, tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    total = num_calls(lambda tell: unpack(packed_file, tmp_path / "whole", tell))
    assert total > 3
    for number in range(1, total + 1):
        with pytest.raises(type(error)):
            unpack(packed_file, out / "cache", Stop(number, error))
        assert list(out.iterdir() if out.exists() else ()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("call", ["pack", "unpack"])
def test_a_killed_process_leaves_nothing_under_the_name(
    call: str, small_cache: Path, packed_file: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    source, target = (
        (small_cache, tmp_path / "out" / "a.tar.zst") if call == "pack" else (packed_file, tmp_path / "out" / "a")
    )
    code = f"""
import os, pathlib, signal, sys
from storage.sharing.archive import {call}

told = []
def kill(num_bytes):
    told.append(num_bytes)
    if len(told) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

{call}(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), kill)
"""
    done = run_python(code, source, target)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list(target.parent.iterdir())
    assert left
    assert all(path.name.startswith(TEMPORARY_PREFIX) for path in left)


class FullDisk:
    """Makes the n-th call of a function, and all after it, fail as a full disk does."""

    def __init__(self, original: Callable[..., Any], number: int) -> None:
        self.original, self.left = original, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.original(*args, **kwargs)


class FileOnFullDisk:
    def __init__(self, path: Path, write: FullDisk) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        write.original = self._file.write
        self.write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill_disk(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    match step:
        case "write":
            path_open, write = Path.open, FullDisk(print, number)
            monkeypatch.setattr(
                Path, "open", lambda p, mode: FileOnFullDisk(p, write) if mode == "wb" else path_open(p, mode)
            )
        case "open":
            path_open, refused_open = Path.open, FullDisk(Path.open, number)
            monkeypatch.setattr(Path, "open", lambda p, mode: (refused_open if mode == "wb" else path_open)(p, mode))
        case "mkdir":
            mkdir = FullDisk(Path.mkdir, number)
            monkeypatch.setattr(Path, "mkdir", lambda path, **options: mkdir(path, **options))
        case _:
            monkeypatch.setattr(os, step, FullDisk(getattr(os, step), number))


@pytest.mark.parametrize(
    ("step", "number"),
    [
        *[("write", 1), ("write", 2), ("write", 17), ("open", 1), ("open", 9), ("mkdir", 1), ("mkdir", 3)],
        *[("fsync", 1), ("fsync", 5), ("fsync", 24), ("replace", 1)],
    ],
)
def test_a_full_disk_while_unpacking_leaves_nothing(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        fill_disk(patch, step, number)
        with pytest.raises(WriteRefusedError, match="No space left") as caught:
            unpack(packed_file, out / "cache")
    assert caught.value.path == str(out / "cache")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("step", ["write", "open", "fsync", "replace"])
def test_a_full_disk_while_packing_leaves_nothing(
    small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, step, 1)
        with pytest.raises(WriteRefusedError, match="No space left"):
            pack(small_cache, tmp_path / "a.tar.zst")
    assert list(tmp_path.iterdir()) == [small_cache]


@pytest.mark.parametrize("call", ["pack", "unpack"])
def test_a_real_limit_on_file_size_is_a_full_disk(
    call: str, small_cache: Path, packed_file: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    code = f"""
import pathlib, resource, signal, sys
from storage.sharing.archive import {call}
from storage.errors import WriteRefusedError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
try:
    {call}(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
except WriteRefusedError as error:
    print(error)
"""
    out = tmp_path / "out"
    out.mkdir()
    done = run_python(code, small_cache if call == "pack" else packed_file, out / "target")
    assert "File too large" in done.stdout, done.stderr
    assert list(out.iterdir()) == []
