"""Caches as tools lay them out: files that are kept elsewhere, and symbolic links to them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

Lay = Callable[[Path, Path], Path]


def laid_by_the_hub(cache_dir: Path, base: Path) -> Path:
    """Relative links of a snapshot to blobs beside the snapshots."""
    snapshot = base / "datasets--owner--name" / "snapshots" / "0123abcd"
    return _lay(cache_dir, snapshot, lambda content: snapshot.parents[1] / "blobs" / _sha256(content), is_relative=True)


def laid_by_dvc(cache_dir: Path, base: Path) -> Path:
    """Absolute links of a workspace to a cache that several workspaces share."""

    def place(content: bytes) -> Path:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return base / "dvc-cache" / "files" / "md5" / md5[:2] / md5[2:]

    return _lay(cache_dir, base / "workspace" / "cache", place, is_relative=False)


def laid_by_git_annex(cache_dir: Path, base: Path) -> Path:
    """Relative links to objects that nobody may write."""

    def place(content: bytes) -> Path:
        key = f"SHA256E-s{len(content)}--{_sha256(content)}"
        return base / "repository" / ".git" / "annex" / "objects" / key[-2:] / key / key

    linked = _lay(cache_dir, base / "repository" / "cache", place, is_relative=True)
    for path in linked.rglob("*"):
        if path.is_file():
            path.resolve().chmod(0o444)
    return linked


def laid_by_hand(cache_dir: Path, base: Path) -> Path:
    """Directories moved to another disk, and a link to each."""
    linked = Path(shutil.copytree(cache_dir, base / "cache-by-hand"))
    for directory in [path for path in linked.iterdir() if path.is_dir()]:
        shutil.move(directory, base / "disk" / directory.name)
        directory.symlink_to(base / "disk" / directory.name)
    return linked


LAYOUTS: dict[str, Lay] = {
    "hub": laid_by_the_hub,
    "dvc": laid_by_dvc,
    "git-annex": laid_by_git_annex,
    "by hand": laid_by_hand,
}


def kept_elsewhere(linked: Path) -> dict[Path, tuple[bytes, int]]:
    """The files that the links lead to, with content and time of change."""
    targets = {path.resolve() for path in _files(linked)}
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in targets if not path.is_relative_to(linked)}


def _lay(cache_dir: Path, linked: Path, place: Callable[[bytes], Path], *, is_relative: bool) -> Path:
    for file in _files(cache_dir):
        content, link = file.read_bytes(), linked / file.relative_to(cache_dir)
        target = place(content)
        for path in (target, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        link.symlink_to(os.path.relpath(target, link.parent) if is_relative else target)
    return linked


def _files(directory: Path) -> list[Path]:
    """Every file below a directory; go through links to directories."""
    found = (Path(root) / name for root, _, names in os.walk(directory, followlinks=True) for name in names)
    return sorted(path for path in found if path.is_file())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
