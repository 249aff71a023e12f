"""Packed caches taken apart and put together by hand, honest ones and hostile ones."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import zstandard

from storage.errors import TeachonceError

COMMIT = "commits/soft_targets-train-00001.json"
SHARD = "soft_targets/train-00001-of-00003.arrow"
WINDOW_LOG = 25

Member = tuple[tarfile.TarInfo, bytes]
Refuse = Callable[..., TeachonceError]
Tamper = Callable[[list[Member]], list[Member]]


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


def inserted(path: str, at: int = 1, data: bytes = b"x", **fields: Any) -> Tamper:
    return lambda members: [*members[:at], member(path, data, **fields), *members[at:]]


def declared(path: str, num_bytes: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.type = num_bytes, kind
    return header_bytes(info)
