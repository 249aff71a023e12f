"""Packing: what comes back, what the bytes depend on, and what cannot be packed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage import open_cache, verify_cache
from storage.errors import (
    ConfigError,
    HashMismatchError,
    IncompleteCacheError,
    LinkTargetError,
    MissingFileError,
    NoCacheError,
    RecordError,
    TeachonceError,
)
from storage.reading.cache import Cache
from storage.sharing.archive import pack, unpack
from storage.sharing.tar_header import tar_header
from storage.sharing.zstd_frame import frame_compressor
from tests.storage.sharing.archives import COMMIT, SHARD, add_file
from tests.storage.stopping import snapshot


def test_a_cache_comes_back_file_by_file(small_cache: Path, tmp_path: Path, real_disk: None) -> None:
    packed = pack(small_cache, tmp_path / "a.tar.zst")
    content = (tmp_path / "a.tar.zst").read_bytes()
    assert (packed.archive_bytes, packed.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    restored = unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert restored.manifest == open_cache(small_cache).manifest
    assert snapshot(tmp_path / "restored") == snapshot(small_cache)
    assert verify_cache(tmp_path / "restored").problems == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.zst", "cache", "restored"]


def test_a_real_cache_with_its_tokenizer_comes_back_and_packs_alike(cache: Cache, tmp_path: Path) -> None:
    first = pack(cache.path, tmp_path / "a.tar.zst")
    unpack(tmp_path / "a.tar.zst", tmp_path / "restored")
    assert snapshot(tmp_path / "restored") == snapshot(cache.path)
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
    assert snapshot(tmp_path / "restored") == snapshot(small_cache)


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


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("moved")


DAMAGES: dict[str, tuple[str, Callable[[Path], object], type[TeachonceError]]] = {
    "flipped shard": (SHARD, flip, HashMismatchError),
    "flipped file": ("README.md", flip, HashMismatchError),
    "short shard": (SHARD, lambda path: os.truncate(path, 100), HashMismatchError),
    "long file": ("README.md", lambda path: path.write_bytes(path.read_bytes() + b"\n"), HashMismatchError),
    "no shard": (SHARD, Path.unlink, MissingFileError),
    "no file": ("README.md", Path.unlink, MissingFileError),
    "shard that is a link to nothing": (SHARD, link_to_nothing, LinkTargetError),
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
    assert snapshot(file.parent) == ({file.name: earlier} if earlier else {})


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
    before = snapshot(small_cache)
    for file in (tmp_path, small_cache / "manifest.json", small_cache / "new", small_cache / ".." / "cache" / SHARD):
        with pytest.raises(ConfigError, match="outside of"):
            pack(small_cache, file)
    assert snapshot(small_cache) == before


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
