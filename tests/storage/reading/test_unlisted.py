"""Verification names what stands in a cache and is no part of it; what other tools keep there may stay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import verify_cache
from storage.errors import CacheError, UnlistedFileError
from tests.storage.links import laid_by_hand
from tests.storage.reading.forging import FIRST, outside
from tests.storage.reading.readers import Watch

Verify = Callable[[Path], tuple[CacheError, ...]]

SOFT = FIRST["soft_targets"]
STRAYS = (
    "soft_targets/train-00000-of-00002 (1).arrow",
    "soft_targets/Copy of train-00000-of-00002.arrow",
    "soft_targets/train-00000-of-00003.arrow",
    "soft_targets/train-00000-of-00002.arrow.bak",
    "samples/validation-00000-of-00001.arrow",
    "beams/_train.arrow",
    "commits/soft_targets-train-00007.json",
    "tokenizer/config.json",
    "tokenizer/.DS_Store",
    "tokenizer/tokenizer.dvc",
    "NOTES.md",
    "lock",
)
OF_TOOLS = (
    ".tmp-0123-manifest.json",
    "soft_targets/.tmp-0123-train-00000-of-00002.arrow",
    "tokenizer/.tmp-0123-tokenizer.json",
    ".work/lock",
    ".git/HEAD",
    ".gitattributes",
    ".gitignore",
    "soft_targets/.gitignore",
    ".cache/huggingface/download/manifest.json.metadata",
    ".dvc/config",
    ".dvcignore",
    "soft_targets.dvc",
    "soft_targets/train-00000-of-00002.arrow.dvc",
    ".DS_Store",
    "soft_targets/._train-00000-of-00002.arrow",
)


def put(cache_dir: Path, name: str) -> None:
    (cache_dir / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cache_dir / SOFT, cache_dir / name)


@pytest.mark.parametrize("name", STRAYS)
def test_a_file_that_the_manifest_does_not_list_is_named(stranger: Path, verify_alike: Verify, name: str) -> None:
    put(stranger, name)
    [problem] = verify_alike(stranger)
    assert type(problem) is UnlistedFileError
    assert str(problem).startswith(f"{stranger / name}: not in the manifest")


def test_each_is_named_once_and_a_directory_as_one(stranger: Path) -> None:
    for name in (*STRAYS, "old/a/b.arrow", "old/c.arrow"):
        put(stranger, name)
    found = [str(problem.path) for problem in verify_cache(stranger).problems]
    assert sorted(found) == sorted(str(stranger / name) for name in (*STRAYS, "old"))


def test_what_tools_keep_in_a_cache_may_stay(stranger: Path, verify_alike: Verify) -> None:
    for name in OF_TOOLS:
        put(stranger, name)
    assert verify_alike(stranger) == ()


def test_a_directory_that_is_a_link_is_looked_into(stranger: Path, tmp_path: Path) -> None:
    linked = laid_by_hand(stranger, tmp_path / "elsewhere")
    put(linked, STRAYS[0])
    assert [str(problem.path) for problem in verify_cache(linked).problems] == [str(linked / STRAYS[0])]


def test_an_unlisted_link_is_named_and_not_followed(stranger: Path, watch: Watch) -> None:
    (stranger / "notes").symlink_to(outside(stranger))
    (stranger / "more.arrow").symlink_to(outside(stranger) / "secret")
    with watch.on(outside(stranger)) as seen:
        assert [type(problem) for problem in verify_cache(stranger).problems] == [UnlistedFileError] * 2
    assert seen == []


@pytest.mark.parametrize("path", ["../outside/file", "a/../../outside/file", "/{outside}/file"])
def test_a_listed_path_that_leads_out_is_not_looked_at(
    stranger: Path,
    forge: SimpleNamespace,
    watch: Watch,
    verify_alike: Verify,
    path: str,
) -> None:
    path = path.format(outside=outside(stranger))
    forge.record(stranger / "manifest.json", lambda manifest: manifest["files"][0].update(path=path))
    with watch.on(outside(stranger)) as seen:
        assert len(verify_alike(stranger)) == 2, "that path, and README.md, which is not listed now"
    assert seen == []


def test_a_name_of_a_stranger_is_printed_as_text(stranger: Path) -> None:
    for name in (b"\x1b[31mred", b"two\nlines", b"\xff"):
        Path(os.fsdecode(os.fsencode(stranger) + b"/" + name)).touch()
    problems = verify_cache(stranger).problems
    assert len(problems) == 3
    assert all(str(problem).isprintable() for problem in problems)
