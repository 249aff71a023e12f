from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import open_cache, verify_cache
from storage.disk.files import TEMPORARY_PREFIX
from storage.errors import (
    ArchiveError,
    ConfigError,
    FormatVersionError,
    HashMismatchError,
    IncompleteCacheError,
    MissingFileError,
    NoCacheError,
    RecordError,
    TeachonceError,
    UnsafePathError,
    WriteRefusedError,
)
from storage.reading.cache import Cache
from storage.records.records import MAX_RECORD_BYTES
from storage.sharing.archive import pack, unpack
from storage.sharing.tar_header import tar_header
from storage.sharing.zstd_frame import _FRAME_HEADER, _JOB_BYTES, frame_compressor

COMMIT = "commits/soft_targets-train-00001.json"
SHARD = "soft_targets/train-00001-of-00003.arrow"
WINDOW_LOG = 25

Member = tuple[tarfile.TarInfo, bytes]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def header_bytes(info: tarfile.TarInfo) -> bytes:
    """A ustar header as tarfile makes it, with the device numbers that its versions fill in differently."""
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[329:345] = b"0000000\0" * 2
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(path: str, data: bytes, **fields: Any) -> Member:
    info = tarfile.TarInfo(path)
    info.size = len(data)
    for name, value in fields.items():
        setattr(info, name, value)
    return info, data


def tar_of(members: list[Member], end: bytes = bytes(1024)) -> bytes:
    blocks = [header_bytes(info) + data + bytes(-len(data) % 512) for info, data in members]
    return b"".join(blocks) + end


def zstd_frame(content: bytes, **changes: Any) -> bytes:
    wanted = {"compression_level": 3, "window_log": WINDOW_LOG, "write_checksum": True} | changes
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(**wanted)
    ).compressobj()
    return bytes(compressor.compress(content) + compressor.flush())


def skippable(content: bytes) -> bytes:
    return bytes.fromhex("502a4d18") + len(content).to_bytes(4, "little") + content


def sealed(frames: bytes) -> bytes:
    """The bytes with the sha256 that belongs behind them, however hostile they are."""
    return frames + skippable(hashlib.sha256(frames).digest())


def bomb(head: bytes, num_zeros: int) -> bytes:
    """A frame of `head` and at least `num_zeros` zeros, four bytes for each 128 KiB of them."""
    size = 1 << 17
    block = ((size << 3) | 2).to_bytes(3, "little") + b"\0"
    raw = (len(head) << 3).to_bytes(3, "little") + head
    return bytes.fromhex("28b52ffd0478") + raw + block * -(-num_zeros // size) + bytes.fromhex("010000") + bytes(4)


def plain(file: Path) -> bytes:
    return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes()))


def members_of(file: Path) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(plain(file))) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]


def replaced(members: list[Member], path: str, *news: Member) -> list[Member]:
    at = next(i for i, (info, _) in enumerate(members) if info.name == path)
    return members[:at] + list(news) + members[at + 1 :]


def edited(members: list[Member], path: str, **fields: Any) -> list[Member]:
    data = next(data for info, data in members if info.name == path)
    return replaced(members, path, member(path, data, **fields))


def add_file(cache_dir: Path, forge: SimpleNamespace, path: str, data: bytes) -> None:
    """Let the manifest account for one more file."""
    (cache_dir / path).parent.mkdir(parents=True, exist_ok=True)
    (cache_dir / path).write_bytes(data)
    record = {"path": path, "file_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge.record(cache_dir / "manifest.json", lambda content: content["files"].append(record))


@pytest.fixture(autouse=True)
def _fast_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of archives: a test that is about the disk asks for it."""
    if "real_disk" not in request.fixturenames:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def real_disk() -> None:
    """Keep os.fsync."""


@pytest.fixture(scope="session")
def packed_file(_pristine_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache, packed; not to be changed."""
    file = tmp_path_factory.mktemp("packed") / "cache.tar.zst"
    pack(_pristine_cache, file)
    return file


@pytest.fixture
def packed_members(packed_file: Path) -> list[Member]:
    return members_of(packed_file)


Refuse = Callable[..., TeachonceError]


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Unpack bytes that must be refused with this very class, and leave nothing behind."""

    def run(
        content: bytes,
        error: type[TeachonceError] | tuple[type[TeachonceError], ...] = ArchiveError,
        match: str | None = None,
    ) -> TeachonceError:
        file, out = tmp_path / "hostile.tar.zst", tmp_path / "out"
        out.mkdir(exist_ok=True)
        file.write_bytes(content)
        with pytest.raises(TeachonceError, match=match) as caught:
            unpack(file, out / "cache")
        assert caught.type in (error if isinstance(error, tuple) else (error,)), caught.value
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert TEMPORARY_PREFIX not in str(caught.value)
        assert list(out.iterdir()) == []
        return caught.value

    return run


# Round trips


def test_a_cache_comes_back_file_by_file(small_cache: Path, tmp_path: Path, real_disk: None) -> None:
    packed = pack(small_cache, tmp_path / "a.tar.zst")
    content = (tmp_path / "a.tar.zst").read_bytes()
    assert (packed.archive_bytes, packed.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    restored = unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert restored.manifest == open_cache(small_cache).manifest
    assert contents(tmp_path / "restored") == contents(small_cache)
    assert verify_cache(tmp_path / "restored").problems == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.zst", "cache", "restored"]


def test_a_real_cache_with_its_tokenizer_comes_back_and_packs_alike(cache: Cache, tmp_path: Path) -> None:
    first = pack(cache.path, tmp_path / "a.tar.zst")
    unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(cache.path)
    assert pack(tmp_path / "restored", tmp_path / "b.tar.zst") == first
    assert (tmp_path / "a.tar.zst").read_bytes() == (tmp_path / "b.tar.zst").read_bytes()


def test_what_the_manifest_does_not_list_is_not_packed(small_cache: Path, tmp_path: Path, packed_file: Path) -> None:
    for stray in (".tmp-0-plan.json", ".work/state", "soft_targets/.tmp-1-shard", "notes.txt"):
        (small_cache / stray).parent.mkdir(exist_ok=True)
        (small_cache / stray).write_bytes(b"stray")
    pack(small_cache, tmp_path / "a.tar.zst")
    assert (tmp_path / "a.tar.zst").read_bytes() == packed_file.read_bytes()


def test_only_a_packed_cache_is_replaced(small_cache: Path, tmp_path: Path, packed_file: Path) -> None:
    out = tmp_path / "out.tar.zst"
    for content in (b"", packed_file.read_bytes()):
        out.write_bytes(content)
        pack(small_cache, out)
        assert out.read_bytes() == packed_file.read_bytes()
    compressor = frame_compressor(1)
    other_archive = compressor.compress(tar_header("letters.txt", 0)) + compressor.flush()
    for content in (b"my notes", b"\x28\xb5\x2f\xfd\x00 of another program", other_archive):
        out.write_bytes(content)
        with pytest.raises(ConfigError, match=r"out\.tar\.zst: holds something else than a packed cache"):
            pack(small_cache, out)
        assert out.read_bytes() == content


def test_empty_files_and_long_and_foreign_names_come_back(
    small_cache: Path, tmp_path: Path, forge: SimpleNamespace
) -> None:
    names = {"tokenizer/empty": b"", "tokenizer/ü🦉 ∎.txt": b"x" * 512, f"tokenizer/{'a' * 90}/{'b' * 100}": b"y" * 511}
    for name, data in names.items():
        add_file(small_cache, forge, name, data)
    pack(small_cache, tmp_path / "a.tar.zst")
    unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(small_cache)


@pytest.mark.parametrize("path", [f"tokenizer/{'a' * 101}", f"{'a' * 156}/b", "é" * 51])
def test_a_path_that_tar_cannot_hold_is_refused_before_anything_is_written(
    small_cache: Path, tmp_path: Path, forge: SimpleNamespace, path: str
) -> None:
    add_file(small_cache, forge, path, b"x")
    with pytest.raises(ConfigError, match="too long a path"):
        pack(small_cache, tmp_path / "a.tar.zst")
    assert list(tmp_path.iterdir()) == [small_cache]


def test_a_shard_that_tar_cannot_hold_is_refused(
    small_cache: Path, tmp_path: Path, forge: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (small_cache / SHARD).open("r+b") as shard:
        shard.truncate(8 << 30)
    forge.shard_record(small_cache, SHARD, shard_bytes=8 << 30)
    with pytest.raises(ConfigError, match="8589934592 bytes"):
        pack(small_cache, tmp_path / "a.tar.zst")


# The same bytes


def test_the_bytes_depend_on_the_content_alone(small_cache: Path, tmp_path: Path, packed_file: Path) -> None:
    copied = Path(shutil.copytree(small_cache, tmp_path / "elsewhere" / "copied"))
    for index, path in enumerate(sorted(copied.rglob("*"), reverse=True)):
        path.chmod(0o700 if index % 2 else 0o755)
        os.utime(path, (index, 2**31 + index))
    previous = os.umask(0o077)
    try:
        pack(copied, tmp_path / "a.tar.zst")
    finally:
        os.umask(previous)
    assert (tmp_path / "a.tar.zst").read_bytes() == packed_file.read_bytes()


@pytest.fixture
def large_cache(small_cache: Path, forge: SimpleNamespace) -> Path:
    """A cache with a file of a dozen of zstd's jobs, in which near and far repeats alternate with noise."""
    rng = random.Random(0)
    pieces = [rng.randbytes(1 << 18) for _ in range(8)]
    data = b"".join(
        rng.choice(pieces)[rng.randrange(1000) :]
        if rng.random() < 0.6
        else bytes(rng.choices(b"teachonce", k=1 << 10)) * 200
        for _ in range(100)
    )
    add_file(small_cache, forge, "tokenizer/large", data)
    return small_cache


def test_the_bytes_do_not_depend_on_the_number_of_threads(large_cache: Path, tmp_path: Path) -> None:
    assert (large_cache / "tokenizer" / "large").stat().st_size > 10 * _JOB_BYTES
    packed = {threads: pack(large_cache, tmp_path / f"{threads}.tar.zst", num_threads=threads) for threads in (1, 2, 4)}
    packed[0] = pack(large_cache, tmp_path / "default.tar.zst")
    packed[1000] = pack(large_cache, tmp_path / "1000.tar.zst", num_threads=1000)
    assert len(set(packed.values())) == 1
    unpack(tmp_path / "4.tar.zst", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(large_cache)


def test_far_repeats_are_found(small_cache: Path, tmp_path: Path, forge: SimpleNamespace) -> None:
    noise = random.Random(0).randbytes(5 << 20)
    add_file(small_cache, forge, "tokenizer/once", noise)
    once = pack(small_cache, tmp_path / "once.tar.zst").archive_bytes
    add_file(small_cache, forge, "tokenizer/twice", noise)
    twice = pack(small_cache, tmp_path / "twice.tar.zst").archive_bytes
    assert once > len(noise)
    assert twice < once + len(noise) // 20


def test_memory_does_not_grow_with_the_cache(large_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.tar.zst"
    tracemalloc.start()
    try:
        pack(large_cache, file, num_threads=2)
        packing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        unpack(file, tmp_path / "restored")
        unpacking = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert packing < 16 << 20
    assert unpacking < 4 << 20


# Other readers


def expected_order(cache_dir: Path) -> list[str]:
    manifest = open_cache(cache_dir).manifest
    shards = [path for shard in manifest.shards for path in (shard.key.commit_path, shard.path)]
    return ["manifest.json", "plan.json", *(file.path for file in manifest.files), *shards]


def test_pythons_tarfile_reads_it(packed_file: Path, small_cache: Path) -> None:
    with (
        zstandard.ZstdDecompressor().stream_reader(packed_file.open("rb"), closefd=True) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        found = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    assert [info.name for info, _ in found] == expected_order(small_cache)
    assert {info.name: data for info, data in found} == contents(small_cache)
    assert {(i.mode, i.mtime, i.uid, i.gid, i.uname, i.gname, i.type) for i, _ in found} == {
        (0o644, 0, 0, 0, "", "", tarfile.REGTYPE)
    }


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("zstd")), reason="no tar with zstd here")
def test_tar_and_zstd_read_it(packed_file: Path, small_cache: Path, tmp_path: Path) -> None:
    listed = subprocess.run(["tar", "--zstd", "-tf", packed_file], capture_output=True, text=True, check=True)
    assert (listed.stdout.splitlines(), listed.stderr) == (expected_order(small_cache), "")
    (tmp_path / "restored").mkdir()
    subprocess.run(["tar", "--zstd", "-xf", packed_file, "-C", tmp_path / "restored"], check=True)
    assert contents(tmp_path / "restored") == contents(small_cache)
    subprocess.run(["zstd", "-tq", packed_file], check=True)


_NAMES = st.text(st.characters(categories=["L", "N", "P", "Zs"], exclude_characters="/\0"), min_size=1, max_size=60)


@given(parts=st.lists(_NAMES, min_size=1, max_size=6), num_bytes=st.integers(0, (8 << 30) - 1))
def test_a_header_says_what_tarfile_reads(parts: list[str], num_bytes: int) -> None:
    path = "/".join(parts)
    try:
        header = tar_header(path, num_bytes)
    except ConfigError:
        info = tarfile.TarInfo(path)
        with pytest.raises(ValueError, match="name is too long"):
            info.tobuf(tarfile.USTAR_FORMAT, "utf-8")
        return
    found = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (found.name, found.size, found.type) == (path, num_bytes, tarfile.REGTYPE)
    info = tarfile.TarInfo(path)
    info.size = num_bytes
    if len(path.encode()) <= 100:
        assert header == header_bytes(info)


# What cannot be packed


def test_an_incomplete_cache_or_none_is_refused(small_cache: Path, tmp_path: Path) -> None:
    (small_cache / "manifest.json").unlink()
    with pytest.raises(IncompleteCacheError):
        pack(small_cache, tmp_path / "a.tar.zst")
    with pytest.raises(NoCacheError):
        pack(tmp_path / "nowhere", tmp_path / "a.tar.zst")
    assert list(tmp_path.iterdir()) == [small_cache]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


DAMAGES: dict[str, tuple[str, Callable[[Path], object], type[TeachonceError]]] = {
    "flipped shard": (SHARD, flip, HashMismatchError),
    "flipped file": ("README.md", flip, HashMismatchError),
    "short shard": (SHARD, lambda path: os.truncate(path, 100), HashMismatchError),
    "long file": ("README.md", lambda path: path.write_bytes(path.read_bytes() + b"\n"), HashMismatchError),
    "no shard": (SHARD, Path.unlink, MissingFileError),
    "no file": ("README.md", Path.unlink, MissingFileError),
    "linked shard": (SHARD, link, UnsafePathError),
    "no commit": (COMMIT, Path.unlink, RecordError),
    "flipped commit": (COMMIT, flip, RecordError),
    "padded commit": (COMMIT, lambda path: path.write_bytes(path.read_bytes() + b" " * 4096), HashMismatchError),
    "no plan": ("plan.json", Path.unlink, MissingFileError),
    "flipped plan": ("plan.json", flip, RecordError),
    "flipped manifest": ("manifest.json", flip, RecordError),
}


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "over an earlier file"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cache_cannot_be_packed(
    small_cache: Path, packed_file: Path, tmp_path: Path, name: str, is_there: bool
) -> None:
    earlier = packed_file.read_bytes() if is_there else None
    path, damage, error = DAMAGES[name]
    damage(small_cache / path)
    file = tmp_path / "packed" / "a.tar.zst"
    file.parent.mkdir()
    if earlier:
        file.write_bytes(earlier)
    with pytest.raises(error, match=Path(path).stem):
        pack(small_cache, file)
    assert contents(file.parent) == ({file.name: earlier} if earlier else {})


def test_a_plan_or_commit_of_another_cache_is_refused(
    small_cache: Path, tmp_path: Path, forge: SimpleNamespace
) -> None:
    forge.record(small_cache / COMMIT, lambda content: content.update(num_tokens=1))
    with pytest.raises(RecordError, match=r"00001\.json: missing, or differs"):
        pack(small_cache, tmp_path / "a.tar.zst")
    forge.record(small_cache / "plan.json", lambda content: content["data"].update(source="other"))
    with pytest.raises(RecordError, match=r"plan\.json: differs"):
        pack(small_cache, tmp_path / "a.tar.zst")


@pytest.mark.parametrize("change", [b"x", None], ids=["grows", "shrinks"])
def test_a_file_that_changes_meanwhile_cannot_be_packed(
    large_cache: Path, tmp_path: Path, change: bytes | None
) -> None:
    victim = large_cache / "tokenizer" / "large"

    def interfere(num_bytes: int) -> None:
        with victim.open("ab") as file:
            file.write(change) if change else file.truncate(victim.stat().st_size - 1)

    with pytest.raises(HashMismatchError, match="large"):
        pack(large_cache, tmp_path / "a.tar.zst", interfere)
    assert list(tmp_path.iterdir()) == [large_cache]


def test_a_place_for_no_file_is_refused(small_cache: Path, tmp_path: Path) -> None:
    before = contents(small_cache)
    for file in (tmp_path, small_cache / "manifest.json", small_cache / "new", small_cache / ".." / "cache" / SHARD):
        with pytest.raises(ConfigError, match="outside of"):
            pack(small_cache, file)
    assert contents(small_cache) == before


def test_each_file_is_read_once_but_the_records(
    small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    path_open = Path.open

    def logged(path: Path, mode: str = "r", **options: Any) -> Any:
        opened.append(path.name)
        return path_open(path, mode, **options)

    monkeypatch.setattr(Path, "open", logged)
    pack(small_cache, tmp_path / "a.tar.zst")
    for path in [*small_cache.rglob("*.arrow"), small_cache / "README.md"]:
        assert opened.count(path.name) == sum(other.name == path.name for other in small_cache.rglob("*"))


# Progress and stops


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


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
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
        assert contents(file.parent) == ({file.name: earlier} if earlier else {})


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
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


# Where to unpack


def test_an_empty_directory_is_taken_and_parents_are_made(packed_file: Path, tmp_path: Path, small_cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        unpack(packed_file, target)
        assert contents(target) == contents(small_cache)
        assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


def test_a_relative_path_is_taken(
    packed_file: Path, tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unpack(packed_file, Path("restored"))
    assert contents(tmp_path / "restored") == contents(small_cache)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link", "current directory"])
def test_a_path_that_is_taken_is_not_touched(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    target, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    elsewhere.mkdir()
    match kind:
        case "file":
            target.write_bytes(b"precious")
        case "directory":
            target.mkdir()
            (target / "precious").write_bytes(b"precious")
        case "link":
            target.symlink_to(elsewhere)
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
        case _:
            target.mkdir()
            monkeypatch.chdir(target)
    before = {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match="already there"):
        unpack(packed_file, Path() if kind == "current directory" else target)
    assert {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_path_that_is_taken_meanwhile_is_not_touched(packed_file: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out" / "there"

    def take(num_bytes: int) -> None:
        if kind == "file":
            target.write_bytes(b"precious")
        else:
            target.mkdir(exist_ok=True)
            (target / "precious").write_bytes(b"precious")

    target.parent.mkdir()
    with pytest.raises(ConfigError, match="meanwhile"):
        unpack(packed_file, target, take)
    assert list(contents(target.parent).values()) == [b"precious"]


def test_no_file_to_unpack_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, problem in (("nowhere", "No such file"), ("directory", "not a file"), ("fifo", "not a file")):
        with pytest.raises(ArchiveError, match=problem) as caught:
            unpack(tmp_path / name, tmp_path / "restored")
        assert caught.value.path == str(tmp_path / name)
    assert not (tmp_path / "restored").exists()


def test_everything_is_on_disk_before_the_cache_has_its_name(
    packed_file: Path, tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    replace = os.replace

    def logged(source: Path, target: Path) -> None:
        at_rename = {os.path.relpath(path, source) for path in synced}
        assert at_rename == {".", *(str(path.relative_to(small_cache)) for path in small_cache.rglob("*"))}
        synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "replace", logged)
    unpack(packed_file, tmp_path / "restored")
    assert synced == [str(tmp_path)]


# Full disks


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


# Damaged archives


def test_the_builder_of_hostile_archives_builds_honest_ones_too(
    packed_members: list[Member], packed_file: Path, tmp_path: Path, small_cache: Path
) -> None:
    tar = tar_of(packed_members)
    assert tar == plain(packed_file)
    (tmp_path / "a.tar.zst").write_bytes(sealed(zstd_frame(tar)))
    unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(small_cache)


def test_a_file_cut_off_anywhere_is_refused(packed_file: Path, refuse: Refuse) -> None:
    content = packed_file.read_bytes()
    for percent in range(100):
        refuse(content[: len(content) * percent // 100])
    for num_bytes in range(1, 50):
        refuse(content[:num_bytes])
        refuse(content[:-num_bytes])


def test_a_tar_that_ends_at_a_member_is_refused(packed_members: list[Member], refuse: Refuse) -> None:
    for num_members in range(1, len(packed_members)):
        cut = packed_members[:num_members]
        refuse(sealed(zstd_frame(tar_of(cut, end=b""))), match="ends before")
        refuse(sealed(zstd_frame(tar_of(cut))), match="ends where")
        refuse(sealed(zstd_frame(tar_of(cut, end=header_bytes(packed_members[num_members][0])))), match="ends before")


def test_no_flipped_bit_is_silent(packed_file: Path, refuse: Refuse) -> None:
    content = packed_file.read_bytes()
    rng = random.Random(0)
    positions = {rng.randrange(len(content) * 8) for _ in range(200)}
    positions |= {*range(8 * 8), *range((len(content) - 44) * 8, len(content) * 8, 5)}
    for position in sorted(positions):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        refuse(bytes(damaged))


def test_flips_that_zstd_does_not_notice_are_found_too(packed_file: Path, refuse: Refuse) -> None:
    content, tar = packed_file.read_bytes(), plain(packed_file)
    unnoticed = []
    for position in range(6 * 8, len(content) * 8, 7):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        with contextlib.suppress(zstandard.ZstdError):
            if zstandard.ZstdDecompressor().decompressobj().decompress(bytes(damaged)) == tar:
                unnoticed.append(bytes(damaged))
    assert len(unnoticed) > 5
    for damaged in unnoticed:
        refuse(damaged, match="own sha256|cut off|follows")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(content=st.binary(max_size=300), prefix=st.sampled_from([b"", _FRAME_HEADER]))
def test_noise_is_refused(refuse: Refuse, content: bytes, prefix: bytes) -> None:
    refuse(prefix + content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data(), patch=st.binary(min_size=1, max_size=40))
def test_a_tar_header_of_noise_is_refused(refuse: Refuse, data: st.DataObject, patch: bytes) -> None:
    header = bytearray(header_bytes(member("manifest.json", bytes(10))[0]))
    pristine = bytes(header)
    at = data.draw(st.integers(0, 511))
    header[at : at + len(patch)] = patch[: 512 - at]
    if data.draw(st.booleans()):
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    if bytes(header) != pristine:
        refuse(sealed(zstd_frame(bytes(header) + bytes(2048))), (ArchiveError, UnsafePathError))


# Hostile archives


Tamper = Callable[[list[Member]], list[Member]]


def as_type(kind: bytes, path: str) -> Tamper:
    return lambda members: edited(members, path, type=kind, linkname="manifest.json")


def inserted(path: str, at: int = 1, data: bytes = b"x", **fields: Any) -> Tamper:
    return lambda members: [*members[:at], member(path, data, **fields), *members[at:]]


def swapped(members: list[Member]) -> list[Member]:
    return [*members[:-4], *members[-2:], *members[-4:-2]]


def with_data(path: str, change: Callable[[bytes], bytes]) -> Tamper:
    def tamper(members: list[Member]) -> list[Member]:
        data = next(data for info, data in members if info.name == path)
        return replaced(members, path, member(path, change(data)))

    return tamper


def with_header(path: str, **fields: Any) -> Tamper:
    return lambda members: edited(members, path, **fields)


WRONG_TYPE = "tar's type|no tar header"
TYPES = {
    "hard link": tarfile.LNKTYPE,
    "symbolic link": tarfile.SYMTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "directory": tarfile.DIRTYPE,
    "fifo": tarfile.FIFOTYPE,
    "contiguous file": tarfile.CONTTYPE,
    "old-style file": tarfile.AREGTYPE,
    "pax header": tarfile.XHDTYPE,
    "global pax header": tarfile.XGLTYPE,
    "Solaris header": tarfile.SOLARIS_XHDTYPE,
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
    "sparse file": tarfile.GNUTYPE_SPARSE,
    "unknown": b"Z",
}
MEMBERS: dict[str, tuple[Tamper, str]] = {
    "another file first": (inserted("README.md", at=0), "where manifest.json is expected"),
    "another file in the middle": (inserted("notes.txt", at=5), "'notes.txt' where"),
    "another file last": (inserted("notes.txt", at=19), "more than its manifest"),
    "the manifest twice": (lambda members: [members[0], *members], "'manifest.json' where"),
    "the last shard twice": (lambda members: [*members, members[-1]], "more than its manifest"),
    "a shard twice": (lambda members: [*members[:5], members[4], *members[5:]], "where commits/"),
    "every file twice": (lambda members: members * 2, "more than its manifest"),
    "no manifest": (lambda members: members[1:], "where manifest.json is expected"),
    "no plan": (lambda members: replaced(members, "plan.json"), "where plan.json is expected"),
    "no commit": (lambda members: replaced(members, COMMIT), f"where {COMMIT}"),
    "no shard": (lambda members: replaced(members, SHARD), f"where {SHARD}"),
    "another order": (swapped, "is expected"),
    "not a manifest": (with_data("manifest.json", lambda data: b"x"), "manifest.json: not valid JSON"),
    "an empty manifest": (with_data("manifest.json", lambda data: b""), "manifest.json: not valid JSON"),
    "a changed manifest": (
        with_data("manifest.json", lambda data: data.replace(b"nobody", b"Nobody")),
        "record_sha256",
    ),
    "a changed plan": (with_data("plan.json", lambda data: data.replace(b"nobody", b"Nobody")), "plan.json: damaged"),
    "an empty commit": (with_data(COMMIT, lambda data: b""), "not valid JSON"),
    "a large commit": (with_data(COMMIT, lambda data: data + b" " * 4096), "at most 4096 bytes"),
    "a shard with other bytes": (with_data(SHARD, lambda data: data[:-1] + b"?"), "has sha256"),
    "a card with other bytes": (with_data("README.md", lambda data: b"?" + data[1:]), "has sha256"),
    "a longer shard": (with_data(SHARD, lambda data: data + b"x"), "has .* bytes, expected"),
    "a shorter shard": (with_data(SHARD, lambda data: data[:-1]), "has .* bytes, expected"),
    "an empty shard": (with_data(SHARD, lambda data: b""), "has 0 bytes, expected"),
    "another mode": (with_header(SHARD, mode=0o4755), "tar header"),
    "another time": (with_header("manifest.json", mtime=1), "tar header"),
    "another owner": (with_header("plan.json", uid=1), "tar header"),
    "a named owner": (with_header("plan.json", uname="root"), "tar header"),
    "a link's target": (with_header(COMMIT, linkname="/etc/passwd"), "tar header"),
}
UNSAFE_NAMES = (
    "..",
    "../plan.json",
    "a/../../plan.json",
    "/etc/passwd",
    "./plan.json",
    "c:plan.json",
    "a\\b",
    "\x1b[2J",
)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_does_not_belong_is_refused(packed_members: list[Member], refuse: Refuse, name: str) -> None:
    tamper, match = MEMBERS[name]
    refuse(sealed(zstd_frame(tar_of(tamper(packed_members)))), match=match)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES.keys())
def test_what_is_not_a_regular_file_is_refused(packed_members: list[Member], refuse: Refuse, kind: bytes) -> None:
    for path in ("manifest.json", "plan.json", COMMIT, SHARD):
        refuse(sealed(zstd_frame(tar_of(as_type(kind, path)(packed_members)))), match=WRONG_TYPE)
    for at in (0, 1, 4):
        members = inserted(packed_members[at][0].name, at=at, type=kind)(packed_members)
        refuse(sealed(zstd_frame(tar_of(members))), match=WRONG_TYPE)


@pytest.mark.parametrize("path", [*UNSAFE_NAMES, "../" + "a" * 60 + "/" + "b" * 60], ids=repr)
def test_an_unsafe_name_is_refused(packed_members: list[Member], refuse: Refuse, path: str) -> None:
    for at in (0, 1, 3, 18):
        caught = refuse(sealed(zstd_frame(tar_of(inserted(path, at=at)(packed_members)))), UnsafePathError)
        assert getattr(caught, "path", None) == path


def test_a_header_whose_own_checksum_is_wrong_is_refused(packed_members: list[Member], refuse: Refuse) -> None:
    tar = bytearray(tar_of(packed_members))
    tar[148] ^= 1
    refuse(sealed(zstd_frame(bytes(tar))), match="no tar header")


@pytest.mark.parametrize(
    "field", [b"-0000000001\0", b"\xff" * 12, b"\x80" + bytes(6) + b"\1" + bytes(4), b"0x0000000ff\0"]
)
def test_a_strange_size_is_refused(packed_members: list[Member], refuse: Refuse, field: bytes) -> None:
    header = bytearray(header_bytes(packed_members[0][0]))
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refuse(sealed(zstd_frame(bytes(header) + bytes(4096))))


def test_bytes_hidden_behind_a_member_are_refused(packed_members: list[Member], refuse: Refuse) -> None:
    for index, (info, data) in enumerate(packed_members):
        tar = bytearray(tar_of(packed_members))
        end = len(tar_of(packed_members[: index + 1], end=b""))
        if len(data) % 512:
            tar[end - 1] = 1
            refuse(sealed(zstd_frame(bytes(tar))), match=f"hidden behind {info.name}")


@pytest.mark.parametrize(
    ("end", "match"),
    [
        (b"", "ends before"),
        (bytes(512), "ends before"),
        (bytes(1023), "ends before"),
        (bytes(1023) + b"x", "more than"),
        (bytes(1025), "more than"),
        (bytes(10240), "more than"),
        (bytes(1 << 20), "more than"),
        (bytes(1024) + b"hidden", "more than"),
    ],
    ids=lambda value: f"{len(value)}" if isinstance(value, bytes) else "",
)
def test_an_archive_ends_with_two_blocks_of_zeros(
    packed_members: list[Member], refuse: Refuse, end: bytes, match: str
) -> None:
    refuse(sealed(zstd_frame(tar_of(packed_members, end[:2048]) + end[2048:])), match=match)


def test_anything_around_the_frame_is_refused(packed_members: list[Member], packed_file: Path, refuse: Refuse) -> None:
    tar, content = tar_of(packed_members), packed_file.read_bytes()
    frame, hidden = zstd_frame(tar), zstd_frame(b"hidden")
    refuse(content + b"\0", match="follows")
    refuse(content + hidden, match="follows")
    refuse(content + skippable(b"hidden"), match="follows")
    refuse(content * 2, match="follows")
    for between in (b"\0", hidden, zstd_frame(b""), skippable(b""), skippable(b"hidden")):
        refuse(sealed(frame + between), match="own sha256")
        refuse(sealed(between + frame), match="not a cache that|ends before")
    for cut in (1, 512, 4096, len(tar) - 1024, len(tar) - 1):
        refuse(sealed(zstd_frame(tar[:cut]) + zstd_frame(tar[cut:])), match="ends before")
    refuse(frame, match="cut off")
    refuse(frame + skippable(bytes(32)), match="own sha256")


@pytest.mark.parametrize(
    "changes",
    [
        {"window_log": 24},
        {"window_log": 26},
        {"window_log": 27},
        {"window_log": 31},
        {"write_checksum": False},
        {"format": zstandard.FORMAT_ZSTD1_MAGICLESS},
    ],
    ids=str,
)
def test_another_kind_of_frame_is_refused(
    packed_members: list[Member], refuse: Refuse, changes: dict[str, Any]
) -> None:
    refuse(sealed(zstd_frame(tar_of(packed_members), **changes)), match="not a cache that")


def test_what_is_no_such_archive_is_refused(packed_members: list[Member], refuse: Refuse) -> None:
    tar = tar_of(packed_members)
    sized = zstandard.ZstdCompressor(3).compress(tar)
    for content in (b"", b"x", tar, sized, sealed(sized), b"\x1f\x8b" + tar, skippable(tar)):
        refuse(content)


@pytest.mark.parametrize("kind", ["reserved block", "raw block beyond the limit", "block beyond the file"])
def test_a_malformed_block_is_refused(refuse: Refuse, kind: str) -> None:
    block = {
        "reserved block": ((10 << 3) | 6).to_bytes(3, "little") + bytes(10),
        "raw block beyond the limit": ((1 << 20) << 3).to_bytes(3, "little") + bytes(1 << 20),
        "block beyond the file": (1000 << 3).to_bytes(3, "little") + bytes(10),
    }[kind]
    refuse(sealed(_FRAME_HEADER + block), match="damaged|cut off|ends before")


# Hostile manifests in archives that keep to them


def forged(small_cache: Path, forge: SimpleNamespace, change: Callable[[dict[str, Any]], object]) -> bytes:
    """An archive whose manifest is forged and otherwise all there."""
    forge.record(small_cache / "manifest.json", change)
    return (small_cache / "manifest.json").read_bytes()


def file_record(path: str, data: bytes = b"x", **changes: Any) -> dict[str, Any]:
    return {"path": path, "file_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | changes


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../x", UnsafePathError),
        ("/tmp/x", UnsafePathError),
        ("a/../../x", UnsafePathError),
        ("", UnsafePathError),
        (".", UnsafePathError),
        ("a//b", UnsafePathError),
        ("README.md/", UnsafePathError),
        ("a\\b", UnsafePathError),
        ("a\nb", UnsafePathError),
        ("manifest.json", ArchiveError),
        ("plan.json", ArchiveError),
        ("README.md", ArchiveError),
        ("README.md/x", ArchiveError),
        ("commits", ArchiveError),
        (COMMIT, ArchiveError),
        (SHARD, ArchiveError),
        ("soft_targets", ArchiveError),
    ],
)
def test_a_manifest_with_a_hostile_path_is_refused(
    packed_members: list[Member],
    small_cache: Path,
    forge: SimpleNamespace,
    refuse: Refuse,
    path: str,
    error: type[TeachonceError],
) -> None:
    manifest = forged(small_cache, forge, lambda content: content["files"].append(file_record(path)))
    members = replaced(packed_members, "manifest.json", member("manifest.json", manifest))
    refuse(sealed(zstd_frame(tar_of(inserted(path, at=3)(members)))), error)


@pytest.mark.parametrize(
    ("num_bytes", "field"),
    [(-1, b"-0000000001\0"), (-1, b"\xff" * 12), (8 << 30, b"\x80" + (8 << 30).to_bytes(11, "big"))],
)
def test_a_manifest_with_an_impossible_size_is_refused(
    packed_members: list[Member],
    small_cache: Path,
    forge: SimpleNamespace,
    refuse: Refuse,
    num_bytes: int,
    field: bytes,
) -> None:
    record = file_record("tokenizer/x", b"", file_bytes=num_bytes)
    manifest = forged(small_cache, forge, lambda content: content["files"].append(record))
    members = replaced(packed_members, "manifest.json", member("manifest.json", manifest))
    header = bytearray(header_bytes(tarfile.TarInfo("tokenizer/x")))
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    hostile = tar_of(members[:3], end=b"") + bytes(header) + bytes(512) + tar_of(members[3:])
    refuse(sealed(zstd_frame(hostile)), match=f"has {num_bytes} bytes")


def test_an_archive_of_a_newer_teachonce_says_so(
    packed_members: list[Member], small_cache: Path, forge: SimpleNamespace, refuse: Refuse
) -> None:
    manifest = forged(small_cache, forge, lambda content: content.update(format_version=7))
    hostile = replaced(packed_members, "manifest.json", member("manifest.json", manifest))
    refuse(sealed(zstd_frame(tar_of(hostile))), FormatVersionError, "upgrade teachonce")


@pytest.mark.parametrize("path", ["plan.json", COMMIT])
def test_a_record_of_another_cache_is_refused(
    packed_members: list[Member], small_cache: Path, forge: SimpleNamespace, refuse: Refuse, path: str
) -> None:
    change = {"block_size": 7} if path == "plan.json" else {"num_tokens": 1}
    forge.record(small_cache / path, lambda content: content.update(change))
    hostile = replaced(packed_members, path, member(path, (small_cache / path).read_bytes()))
    refuse(sealed(zstd_frame(tar_of(hostile))), match=f"{Path(path).name}: .*differs")


# Bombs


def declared(path: str, num_bytes: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.type = num_bytes, kind
    return header_bytes(info)


SIX_GIB = 6 << 30
BOMBS: dict[str, Callable[[list[Member]], bytes]] = {
    "a manifest": lambda members: declared("manifest.json", SIX_GIB),
    "a manifest as large as any may be": lambda members: declared("manifest.json", MAX_RECORD_BYTES),
    "a manifest just too large": lambda members: declared("manifest.json", MAX_RECORD_BYTES + 1),
    "a pax header": lambda members: declared("manifest.json", SIX_GIB, tarfile.XHDTYPE),
    "a global pax header": lambda members: declared("x", SIX_GIB, tarfile.XGLTYPE),
    "a long name": lambda members: declared("././@LongLink", SIX_GIB, tarfile.GNUTYPE_LONGNAME),
    "a pax header behind the manifest": lambda members: (
        tar_of(members[:1], end=b"") + declared("plan.json", SIX_GIB, tarfile.XHDTYPE)
    ),
    "a plan": lambda members: tar_of(members[:1], end=b"") + declared("plan.json", SIX_GIB),
    "a commit": lambda members: tar_of(members[:3], end=b"") + declared(members[3][0].name, SIX_GIB),
    "a shard": lambda members: tar_of(members[:4], end=b"") + declared(members[4][0].name, SIX_GIB),
    "zeros behind the end": tar_of,
    "a tar of zeros": lambda members: b"",
}


def test_a_bomb_is_refused_in_little_memory(
    packed_members: list[Member], tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """In a process that may have 4 GiB and files of at most 100 kB."""
    bombs, out = tmp_path / "bombs", tmp_path / "out"
    bombs.mkdir()
    out.mkdir()
    for name, head in BOMBS.items():
        (bombs / name).write_bytes(sealed(bomb(head(packed_members), SIX_GIB)))
        assert (bombs / name).stat().st_size < 300_000
    code = """
import pathlib, resource, signal, sys, tracemalloc
from storage.sharing.archive import unpack
from storage.errors import ArchiveError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    tracemalloc.start()
    try:
        unpack(file, pathlib.Path(sys.argv[2]) / "cache")
    except ArchiveError:
        print(file.name, tracemalloc.get_traced_memory()[1], sep=",")
    tracemalloc.stop()
"""
    done = run_python(code, bombs, out)
    peak_bytes = {name: int(num_bytes) for name, num_bytes in (line.split(",") for line in done.stdout.splitlines())}
    assert peak_bytes.keys() == BOMBS.keys(), done.stderr
    assert max(peak_bytes.values()) < 4 << 20, peak_bytes
    assert list(out.iterdir()) == []


def test_a_manifest_grows_only_with_what_it_lists(
    packed_members: list[Member], small_cache: Path, forge: SimpleNamespace, refuse: Refuse, tmp_path: Path
) -> None:
    members = replaced(packed_members, "manifest.json", member("manifest.json", b"[" + b"[]," * (1 << 20) + b"[]]"))
    refuse(sealed(zstd_frame(tar_of(members))), match=r"manifest\.json has 3145732 bytes, expected at most")
    add_file(small_cache, forge, "tokenizer/noise", random.Random(0).randbytes(1 << 20))
    forge.identity(small_cache, lambda content: content["data"].update(padding="x" * (3 << 20)))
    pack(small_cache, tmp_path / "a.tar.zst")
    unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(small_cache)


def test_the_bombs_go_off_in_a_reader_that_trusts_them(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    (tmp_path / "bomb.tar.zst").write_bytes(bomb(declared("x", SIX_GIB, tarfile.XHDTYPE), SIX_GIB))
    code = """
import sys, tarfile, zstandard
with open(sys.argv[1], "rb") as file:
    stream = zstandard.ZstdDecompressor().stream_reader(file)
    header = tarfile.TarInfo.frombuf(stream.read(512), "utf-8", "strict")
    try:
        stream.read(header.size)
    except MemoryError:
        print("went off")
"""
    done = run_python(code, tmp_path / "bomb.tar.zst")
    assert done.stdout == "went off\n", done.stderr
