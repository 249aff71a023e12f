"""The one zstd frame of an archive: the same bytes from any number of threads, and every other frame is refused."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.sharing.archive import pack, unpack
from storage.sharing.zstd_frame import _FRAME_HEADER, _JOB_BYTES
from tests.storage.sharing.archives import Member, Refuse, add_file, plain, sealed, skippable, tar_of, zstd_frame
from tests.storage.stopping import snapshot


def test_the_bytes_do_not_depend_on_the_number_of_threads(large_cache: Path, tmp_path: Path) -> None:
    assert (large_cache / "tokenizer" / "large").stat().st_size > 10 * _JOB_BYTES
    packed = {threads: pack(large_cache, tmp_path / f"{threads}.tar.zst", num_threads=threads) for threads in (1, 2, 4)}
    packed[0] = pack(large_cache, tmp_path / "default.tar.zst")
    packed[1000] = pack(large_cache, tmp_path / "1000.tar.zst", num_threads=1000)
    assert len(set(packed.values())) == 1
    unpack(tmp_path / "4.tar.zst", tmp_path / "restored")
    assert snapshot(tmp_path / "restored") == snapshot(large_cache)


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


def test_a_file_cut_off_anywhere_is_refused(packed_file: Path, refuse: Refuse) -> None:
    content = packed_file.read_bytes()
    for percent in range(100):
        refuse(content[: len(content) * percent // 100])
    for num_bytes in range(1, 50):
        refuse(content[:num_bytes])
        refuse(content[:-num_bytes])


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
