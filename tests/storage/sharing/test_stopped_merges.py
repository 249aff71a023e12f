"""A merge that is stopped, killed or refused by the disk ends with the same bytes when it is run again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import HashMismatchError, MissingFileError, WriteRefusedError
from storage.sharing.merging import merge
from tests.places import ROOT
from tests.storage.sharing.merges import CONFIG, data_of, refusing
from tests.storage.stopping import snapshot, stop_everywhere


def test_a_disk_that_refuses_links_and_files_is_full(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(two, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refusing(errno.ENOSPC))
        patch.setattr(os, "replace", refusing(errno.ENOSPC))
        with pytest.raises(WriteRefusedError, match="No space left"):
            merge(two, tmp_path / "out")
    merge(two, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "name", ["soft_targets/train-00001-of-00002.arrow", "beams/validation-00000-of-00001.arrow", "README.md"]
)
def test_a_damaged_source_is_refused_and_a_repaired_one_merged(two: list[Path], tmp_path: Path, name: str) -> None:
    merge(two, tmp_path / "undisturbed")
    path = two[1] / name
    whole = path.read_bytes()
    # A file of its own: the other merged cache shares the old one.
    path.unlink()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(HashMismatchError, match=str(path)):
        merge(two, tmp_path / "out")
    path.unlink()
    with pytest.raises(MissingFileError, match=str(path)):
        merge(two, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    path.write_bytes(whole)
    merge(two, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_a_merge_stopped_at_any_publication_ends_with_the_same_bytes(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, links: bool
) -> None:
    sizes = {"soft_targets": {"train": [5, 1]}, "beams": {"validation": [2]}}
    two = [make.cache(tmp_path / name, sizes, ord(name), data=data_of(name), config=CONFIG) for name in "ab"]
    if not links:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    expected = snapshot(merge(two, tmp_path / "undisturbed").path)
    publishers = ("link", "replace") if links else ("replace",)
    num_publications = stop_everywhere(
        lambda out: merge(two, out), tmp_path, expected, after=after, publishers=publishers
    )
    assert num_publications == len(expected), "every file is published once"


def test_a_merge_killed_again_and_again_ends_with_the_same_bytes(two: list[Path], tmp_path: Path) -> None:
    merge(two, tmp_path / "undisturbed")
    code = """
import itertools, os, signal, sys
from pathlib import Path
from storage.sharing.merging import merge
*sources, out = map(Path, sys.argv[1:])
for lifetime in itertools.count(1):
    if os.fork() == 0:
        left = itertools.count(lifetime % 3 + 1, -1)
        for name in ("link", "replace"):
            def mortal(*arguments, original=getattr(os, name), **options):
                if not next(left):
                    os.kill(os.getpid(), signal.SIGKILL)
                original(*arguments, **options)
            setattr(os, name, mortal)
        merge(sources, out)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.wait()[1]) == 0:
        break
    assert lifetime < 99
print(lifetime)
"""
    command = [sys.executable, "-c", code, *map(str, two), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")
