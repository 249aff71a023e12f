"""Tar headers: what tar and Python's tarfile read, and every other header is refused."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import open_cache
from storage.errors import ArchiveError, ConfigError, UnsafePathError
from storage.sharing.tar_header import tar_header
from tests.storage.sharing.archives import (
    COMMIT,
    SHARD,
    Member,
    Refuse,
    Tamper,
    edited,
    header_bytes,
    inserted,
    member,
    sealed,
    tar_of,
    zstd_frame,
)
from tests.storage.stopping import snapshot


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
    assert {info.name: data for info, data in found} == snapshot(small_cache)
    assert {(i.mode, i.mtime, i.uid, i.gid, i.uname, i.gname, i.type) for i, _ in found} == {
        (0o644, 0, 0, 0, "", "", tarfile.REGTYPE)
    }


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("zstd")), reason="no tar with zstd here")
def test_tar_and_zstd_read_it(packed_file: Path, small_cache: Path, tmp_path: Path) -> None:
    listed = subprocess.run(["tar", "--zstd", "-tf", packed_file], capture_output=True, text=True, check=True)
    assert (listed.stdout.splitlines(), listed.stderr) == (expected_order(small_cache), "")
    (tmp_path / "restored").mkdir()
    subprocess.run(["tar", "--zstd", "-xf", packed_file, "-C", tmp_path / "restored"], check=True)
    assert snapshot(tmp_path / "restored") == snapshot(small_cache)
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


def as_type(kind: bytes, path: str) -> Tamper:
    return lambda members: edited(members, path, type=kind, linkname="manifest.json")


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


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES.keys())
def test_what_is_not_a_regular_file_is_refused(packed_members: list[Member], refuse: Refuse, kind: bytes) -> None:
    for path in ("manifest.json", "plan.json", COMMIT, SHARD):
        refuse(sealed(zstd_frame(tar_of(as_type(kind, path)(packed_members)))), match=WRONG_TYPE)
    for at in (0, 1, 4):
        members = inserted(packed_members[at][0].name, at=at, type=kind)(packed_members)
        refuse(sealed(zstd_frame(tar_of(members))), match=WRONG_TYPE)


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
