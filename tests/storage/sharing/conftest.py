"""Shared by the tests of archives, copies and merges: caches to share, and what refuses a hostile archive."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.disk.files import TEMPORARY_PREFIX
from storage.errors import ArchiveError, TeachonceError
from storage.sharing.archive import pack, unpack
from tests.storage.sharing.archives import Member, Refuse, add_file, members_of
from tests.storage.sharing.copies import ROWS
from tests.storage.sharing.merges import CONFIG, FEW, SIZES, Build, data_of


@pytest.fixture(scope="session")
def packed_file(_pristine_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache, packed; not to be changed."""
    file = tmp_path_factory.mktemp("packed") / "cache.tar.zst"
    pack(_pristine_cache, file)
    return file


@pytest.fixture
def packed_members(packed_file: Path) -> list[Member]:
    return members_of(packed_file)


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


@pytest.fixture(scope="session")
def pristine(make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.cache(tmp_path_factory.mktemp("to-copy") / "cache", ROWS)


@pytest.fixture
def source(pristine: Path, tmp_path: Path, empty_memory: None) -> Path:
    """A finished cache of four shards and a card."""
    return Path(shutil.copytree(pristine, tmp_path / "source"))


@pytest.fixture
def another(make: SimpleNamespace, tmp_path: Path) -> Path:
    """A cache of the same shape from another teacher."""
    teacher = make.identity(ROWS).teacher | {"id": "somebody"}
    return make.cache(tmp_path / "another", ROWS, teacher=teacher)


@pytest.fixture
def empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://bucket/cache" if request.param == "memory" else f"file://{tmp_path}/remote/cache"


@pytest.fixture
def memory_puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is put in memory://, in order."""
    puts: list[str] = []
    put_file = MemoryFileSystem.put_file

    def noted(self: MemoryFileSystem, local: str, path: str, **settings: object) -> None:
        put_file(self, local, path, **settings)
        puts.append(path.partition("/cache/")[2])

    monkeypatch.setattr(MemoryFileSystem, "put_file", noted)
    return puts


@pytest.fixture(scope="session")
def _to_merge(make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("to-merge")
    return {n: make.cache(base / n, SIZES[n], ord(n), data=data_of(n), config=CONFIG) for n in SIZES}


@pytest.fixture
def build(make: SimpleNamespace, _to_merge: dict[str, Path], tmp_path: Path) -> Build:
    """Makes cache `name`, with rows of its own from data of its own: as in SIZES, or a smaller one with changes."""

    def build(name: str, sizes: dict[str, Any] = FEW, **changes: Any) -> Path:
        if sizes is FEW and not changes:
            return Path(shutil.copytree(_to_merge[name], tmp_path / name))
        facts = {"data": data_of(name), "config": CONFIG} | changes
        return Path(make.cache(tmp_path / name, sizes, ord(name), **facts))

    return build


@pytest.fixture
def two(build: Build) -> list[Path]:
    return [build("a"), build("b")]
