"""Shared by the tests of packed caches: an archive, its members, and what refuses a hostile one."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.disk.files import TEMPORARY_PREFIX
from storage.errors import (
    ArchiveError,
    TeachonceError,
)
from storage.sharing.archive import pack, unpack
from tests.storage.sharing.archives import (
    Member,
    Refuse,
    add_file,
    members_of,
)


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
