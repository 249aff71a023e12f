"""Archives from strangers: members, paths, manifests and bombs that do not belong in one."""

from __future__ import annotations

import hashlib
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import ArchiveError, FormatVersionError, TeachonceError, UnsafePathError
from storage.records.records import MAX_RECORD_BYTES
from storage.sharing.archive import pack, unpack
from tests.storage.sharing.archives import (
    COMMIT,
    SHARD,
    Member,
    Refuse,
    Tamper,
    add_file,
    bomb,
    declared,
    edited,
    header_bytes,
    inserted,
    member,
    plain,
    replaced,
    sealed,
    tar_of,
    zstd_frame,
)
from tests.storage.stopping import snapshot


def test_the_builder_of_hostile_archives_builds_honest_ones_too(
    packed_members: list[Member], packed_file: Path, tmp_path: Path, small_cache: Path
) -> None:
    tar = tar_of(packed_members)
    assert tar == plain(packed_file)
    (tmp_path / "a.tar.zst").write_bytes(sealed(zstd_frame(tar)))
    unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert snapshot(tmp_path / "restored") == snapshot(small_cache)


def test_a_tar_that_ends_at_a_member_is_refused(packed_members: list[Member], refuse: Refuse) -> None:
    for num_members in range(1, len(packed_members)):
        cut = packed_members[:num_members]
        refuse(sealed(zstd_frame(tar_of(cut, end=b""))), match="ends before")
        refuse(sealed(zstd_frame(tar_of(cut))), match="ends where")
        refuse(sealed(zstd_frame(tar_of(cut, end=header_bytes(packed_members[num_members][0])))), match="ends before")


def swapped(members: list[Member]) -> list[Member]:
    return [*members[:-4], *members[-2:], *members[-4:-2]]


def with_data(path: str, change: Callable[[bytes], bytes]) -> Tamper:
    def tamper(members: list[Member]) -> list[Member]:
        data = next(data for info, data in members if info.name == path)
        return replaced(members, path, member(path, change(data)))

    return tamper


def with_header(path: str, **fields: Any) -> Tamper:
    return lambda members: edited(members, path, **fields)


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


@pytest.mark.parametrize("path", [*UNSAFE_NAMES, "../" + "a" * 60 + "/" + "b" * 60], ids=repr)
def test_an_unsafe_name_is_refused(packed_members: list[Member], refuse: Refuse, path: str) -> None:
    for at in (0, 1, 3, 18):
        caught = refuse(sealed(zstd_frame(tar_of(inserted(path, at=at)(packed_members)))), UnsafePathError)
        assert getattr(caught, "path", None) == path


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
    assert snapshot(tmp_path / "restored") == snapshot(small_cache)


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
