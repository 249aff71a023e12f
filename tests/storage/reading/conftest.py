"""Shared by the tests of hostile caches: a good cache to turn hostile, and a watch over what lies beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import verify_cache
from storage.errors import CacheError
from storage.remote import retrying
from tests.storage.reading.forging import outside, snapshot, write_good_cache
from tests.storage.reading.readers import READERS, Case, Watch, bounded, errors_of


@pytest.fixture(scope="session")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace, forge: SimpleNamespace) -> Path:
    return write_good_cache(tmp_path_factory.mktemp("good") / "cache", make, forge)


@pytest.fixture
def stranger(pristine: Path, tmp_path: Path) -> Path:
    """A good cache that the test may turn hostile, and a secret beside it."""
    (outside(tmp_path / "cache") / "secret").write_text("{}")
    return Path(shutil.copytree(pristine, tmp_path / "cache"))


@pytest.fixture
def require_refused(
    stranger: Path, forge: SimpleNamespace, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case], None]:
    """Turns the good cache into that of the case and reads it with every reader.

    Each answers with an error of ours in one line, soon, in bounded memory, and touches nothing outside of the cache;
    the readers named in the case answer with the class named there.
    """
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a user who agrees to everything

    def require(case: Case) -> None:
        try:
            case.forgery(stranger, forge)
        except PermissionError:
            pytest.skip("only root makes devices")
        beside = outside(stranger)
        before = snapshot(beside) | snapshot(stranger)
        for reader, read in READERS.items():
            if reader == "train" and reader not in case.refused_by:
                continue  # a step takes long, and reads as `stream` does
            with bounded(), watch.on(beside) as seen:
                errors = errors_of(read, stranger)
            assert seen == [], reader
            assert all("\n" not in str(error) and str(error).isprintable() for error in errors), (reader, errors)
            if reader in case.refused_by:
                assert [type(error) for error in errors if type(error) is case.error], (reader, errors)
        assert snapshot(beside) | snapshot(stranger) == before

    return require


@pytest.fixture
def verify_alike(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[CacheError, ...]]:
    """Verifies a directory as such and at its URL, which must find the same; returns the problems in the directory."""
    monkeypatch.setattr(retrying, "_JITTER", SimpleNamespace(uniform=lambda least, most: 0.0))

    def verify(cache_dir: Path) -> tuple[CacheError, ...]:
        url = f"file://{cache_dir}"
        here, there = verify_cache(cache_dir).problems, verify_cache(url).problems
        assert [str(error).replace(url, str(cache_dir)) for error in there] == [str(error) for error in here]
        assert [type(error) for error in there] == [type(error) for error in here]
        return here

    return verify
