"""Shared by the tests of hostile caches: a good cache to turn hostile, and a watch over what lies beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

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
