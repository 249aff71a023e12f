"""Paths that a record names lead nowhere but into the directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.disk.safe_paths import safe_join, safe_join_to_read
from storage.errors import LinkInTheWayError, LinkTargetError, UnreadableFileError, UnsafePathError
from tests.other_users import give_away, without_rights

Join = Callable[[Path, str, str], Path]
JOINS = (safe_join, safe_join_to_read)
CLIMBING = ("", "/", "/etc/passwd", "//host/share", ".", "..", "../x", "a/../../x", "a/../b", "a/./b", "a/..", "./a")
FOREIGN = ("a\\b", "..\\x", "C:x", "C:\\x", "file:///etc")
UNPRINTABLE = ("a\0b", "a\nb", "a\x1b[31m", "\u202ea", "\ud800")


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("relative", ["file", "a/b/c.arrow", "name with spaces", "é🦉", ".hidden", "..name", "a..b/c"])
def test_a_path_inside_is_joined(tmp_path: Path, relative: str, join: Join) -> None:
    assert join(tmp_path, relative, "here") == tmp_path / relative


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize(
    "relative",
    [*CLIMBING, *FOREIGN, *UNPRINTABLE],
    ids=repr,
)
def test_a_path_that_could_lie_elsewhere_is_refused(tmp_path: Path, relative: str, join: Join) -> None:
    with pytest.raises(UnsafePathError) as caught:
        join(tmp_path, relative, "here")
    assert (caught.value.path, caught.value.where) == (relative, "here")


@pytest.mark.parametrize("link", ["a", "a/b", "a/b/c"])
def test_a_link_anywhere_inside_is_followed_to_read_and_in_the_way_to_write(tmp_path: Path, link: str) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (elsewhere / "b" / "c").mkdir(parents=True)
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(elsewhere)
    with pytest.raises(LinkInTheWayError, match=f"^{root / link}: a link, and only reading follows"):
        safe_join(root, "a/b/c", "here")
    assert safe_join_to_read(root, "a/b/c", "here") == root / "a/b/c"


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LinkInTheWayError):
        safe_join(tmp_path, "a", "here")
    for relative in ("a", "a/b"):
        with pytest.raises(LinkTargetError) as caught:
            safe_join_to_read(tmp_path, relative, "here")
        assert (caught.value.path, caught.value.target) == (str(tmp_path / "a"), str(tmp_path / "nowhere"))


def test_what_is_missing_below_a_linked_directory_is_for_the_reader_to_say(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a").symlink_to("there")
    assert safe_join_to_read(tmp_path, "a/b", "here") == tmp_path / "a/b"


@pytest.mark.parametrize("join", JOINS)
def test_a_directory_that_may_not_be_searched_is_not_distrusted(tmp_path: Path, join: Join) -> None:
    (tmp_path / "a").mkdir()
    give_away(tmp_path / "a", 0o700)
    with without_rights(), pytest.raises(UnreadableFileError, match="Permission denied"):
        join(tmp_path, "a/b", "here")


@pytest.mark.parametrize("join", JOINS)
def test_a_name_too_long_for_the_system_raises_our_error(tmp_path: Path, join: Join) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a").symlink_to("there")
    with pytest.raises(UnsafePathError):
        join(tmp_path, "a" * 300, "here")
    with pytest.raises(UnsafePathError):
        safe_join_to_read(tmp_path, f"a/{'a' * 300}", "here")
