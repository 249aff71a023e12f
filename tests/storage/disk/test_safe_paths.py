"""Paths that a record names lead nowhere but into the directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.disk.safe_paths import safe_join
from storage.errors import UnsafePathError

CLIMBING = ("", "/", "/etc/passwd", "//host/share", ".", "..", "../x", "a/../../x", "a/../b", "a/./b", "a/..", "./a")
FOREIGN = ("a\\b", "..\\x", "C:x", "C:\\x", "file:///etc")
UNPRINTABLE = ("a\0b", "a\nb", "a\x1b[31m", "\u202ea", "\ud800")


@pytest.mark.parametrize("relative", ["file", "a/b/c.arrow", "name with spaces", "é🦉", ".hidden", "..name", "a..b/c"])
def test_a_path_inside_is_joined(tmp_path: Path, relative: str) -> None:
    assert safe_join(tmp_path, relative, "here") == tmp_path / relative


@pytest.mark.parametrize(
    "relative",
    [*CLIMBING, *FOREIGN, *UNPRINTABLE],
    ids=repr,
)
def test_a_path_that_could_lie_elsewhere_is_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(UnsafePathError) as caught:
        safe_join(tmp_path, relative, "here")
    assert (caught.value.path, caught.value.where) == (relative, "here")


@pytest.mark.parametrize("link", ["a", "a/b", "a/b/c"])
def test_a_link_anywhere_inside_is_refused(tmp_path: Path, link: str) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (elsewhere / "b" / "c").mkdir(parents=True)
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(elsewhere)
    with pytest.raises(UnsafePathError):
        safe_join(root, "a/b/c", "here")


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnsafePathError):
        safe_join(tmp_path, "a", "here")


def test_a_name_too_long_for_the_system_raises_our_error(tmp_path: Path) -> None:
    with pytest.raises(UnsafePathError):
        safe_join(tmp_path, "a" * 300, "here")
