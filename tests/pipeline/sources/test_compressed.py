"""Compressed files as archives hold them: several frames or members, long windows, padding, and cut ends."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipeline.errors import NoSuchDataError

TEXT = "".join(f"line {i} of a text\n" for i in range(20_000))
HALVES = TEXT[:1001].encode(), TEXT[1001:].encode()


def zstd(content: bytes, window_log: int = 20) -> bytes:
    """A frame as a pipe writes it: without its size, so that readers must hold the whole window."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
WHOLE = {
    "one.txt.zst": zstd(TEXT.encode()),
    "two_frames.txt.zst": b"".join(map(zstd, HALVES)),
    "skippable.txt.zst": zstd(HALVES[0]) + SKIPPABLE_FRAME + zstd(HALVES[1]),
    "window_2_to_28.txt.zst": zstd(TEXT.encode(), window_log=28),
    "window_2_to_31.txt.zst": zstd(TEXT.encode(), window_log=31),
    "one.txt.gz": gzip.compress(TEXT.encode()),
    "two_members.txt.gz": b"".join(map(gzip.compress, HALVES)),
    "padded.txt.gz": gzip.compress(TEXT.encode()) + bytes(512),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read(read: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WHOLE[name])
    assert read(tmp_path / name) == [TEXT]


BROKEN = {
    "cut_second_frame.txt.zst": b"".join(map(zstd, HALVES))[:-5],
    "cut_header.txt.zst": zstd(HALVES[0]) + zstd(HALVES[1])[:3],
    "cut_second_member.txt.gz": b"".join(map(gzip.compress, HALVES))[:-5],
    "wrong_checksum.txt.gz": gzip.compress(TEXT.encode())[:-8] + bytes(8),
    "behind_padding.txt.gz": gzip.compress(TEXT.encode()) + bytes(512) + b"more",
    "nothing.txt.gz": b"",
    "nothing.txt.zst": b"",
    "text_behind.txt.zst": zstd(TEXT.encode()) + b"plain text",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_never_a_shorter_text(read: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(NoSuchDataError, match=rf"^--data .*{name}: cannot be read \([^\n]*\S\)[^\n]*$"):
        read(tmp_path / name)
