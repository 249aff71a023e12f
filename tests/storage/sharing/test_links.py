"""Caches whose files are links can be shared: what comes out holds plain files, and links are not written through."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import verify_cache
from storage.errors import LinkInTheWayError, LinkTargetError
from storage.sharing.archive import pack, unpack
from storage.sharing.compaction import compact
from storage.sharing.merging import merge
from storage.sharing.transfer import pull, push
from tests.storage.links import LAYOUTS, Lay, kept_elsewhere
from tests.storage.sharing.copies import COMMIT, QUICK, SHARD
from tests.storage.sharing.merges import Build
from tests.storage.stopping import snapshot

URL = "memory://bucket/cache"
lay_each = pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)


def links_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_symlink()]


@lay_each
def test_an_archive_and_a_copy_of_links_hold_plain_files(source: Path, tmp_path: Path, lay: Lay) -> None:
    linked = lay(source, tmp_path / "elsewhere")
    assert pack(linked, tmp_path / "linked.tar.zst") == pack(source, tmp_path / "plain.tar.zst")
    unpack(tmp_path / "linked.tar.zst", tmp_path / "unpacked")
    push(linked, URL, policy=QUICK)
    pull(URL, tmp_path / "pulled", policy=QUICK)
    pull(f"file://{linked}", tmp_path / "pulled-from-links", policy=QUICK)
    for copy in ("unpacked", "pulled", "pulled-from-links"):
        assert links_in(tmp_path / copy) == []
        assert verify_cache(tmp_path / copy).problems == ()


@lay_each
def test_caches_made_of_links_hold_plain_files(build: Build, tmp_path: Path, lay: Lay) -> None:
    linked = [lay(build(name), tmp_path / "elsewhere" / name) for name in ("a", "b")]
    before = {**kept_elsewhere(linked[0]), **kept_elsewhere(linked[1])}
    merge(linked, tmp_path / "merged")
    compact(linked[0], tmp_path / "compacted")
    for made in ("merged", "compacted"):
        assert links_in(tmp_path / made) == []
        assert verify_cache(tmp_path / made).problems == ()
    assert {**kept_elsewhere(linked[0]), **kept_elsewhere(linked[1])} == before


@lay_each
def test_what_is_finished_over_links_is_left_as_it_is(source: Path, tmp_path: Path, lay: Lay) -> None:
    push(source, URL, policy=QUICK)
    linked = lay(source, tmp_path / "elsewhere")
    before, num_links = kept_elsewhere(linked), len(links_in(linked))
    assert pull(URL, linked, policy=QUICK).num_copied_files == 0
    compact(source, linked)
    assert (kept_elsewhere(linked), len(links_in(linked))) == (before, num_links)


Damage = Callable[[Path], object]


def lose_manifest_and_shard(linked: Path) -> None:
    (linked / "manifest.json").unlink()
    (linked / SHARD).unlink()


def lose_manifest_and_commit(linked: Path) -> None:
    (linked / "manifest.json").unlink()
    (linked / COMMIT).unlink()


@lay_each
@pytest.mark.parametrize("damage", [lose_manifest_and_shard, lose_manifest_and_commit])
@pytest.mark.parametrize("write", ["pull", "compact"])
def test_nothing_is_written_through_a_link(source: Path, tmp_path: Path, lay: Lay, damage: Damage, write: str) -> None:
    """Each writer says so, or ends with a whole cache whose new files are plain."""
    push(source, URL, policy=QUICK)
    linked = lay(source, tmp_path / "elsewhere")
    damage(linked)
    before = kept_elsewhere(linked)
    everything = snapshot(tmp_path / "elsewhere")
    is_finished = False
    with contextlib.suppress(LinkInTheWayError):
        pull(URL, linked, policy=QUICK) if write == "pull" else compact(source, linked)
        is_finished = True
    assert is_finished == (linked / "manifest.json").exists()
    assert not is_finished or verify_cache(linked).problems == ()
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    assert after == before
    new = snapshot(tmp_path / "elsewhere").keys() - everything.keys()
    assert all((tmp_path / "elsewhere" / name).resolve().is_relative_to(linked) for name in new)


@pytest.mark.parametrize("directory", ["soft_targets", "commits"])
@pytest.mark.parametrize("write", ["pull", "compact", "merge"])
def test_a_directory_that_is_a_link_is_in_the_way(
    build: Build, tmp_path: Path, directory: str, write: str, empty_memory: None
) -> None:
    sources, out, aside = [build("a"), build("b")], tmp_path / "out", tmp_path / "aside"
    push(sources[0], URL, policy=QUICK)
    writers: dict[str, Callable[[], object]] = {
        "pull": lambda: pull(URL, out, policy=QUICK),
        "compact": lambda: compact(sources[0], out),
        "merge": lambda: merge(sources, out),
    }
    writers[write]()
    shutil.move(out / directory, aside)
    (out / "manifest.json").unlink()
    for file in aside.iterdir():
        file.unlink()
    (out / directory).symlink_to(aside)
    with pytest.raises(LinkInTheWayError, match=f"^{out}/{directory}: a link, and only reading follows links"):
        writers[write]()
    assert list(aside.iterdir()) == []


def test_a_lost_shard_behind_a_link_is_to_be_fetched_not_made(source: Path, tmp_path: Path) -> None:
    linked = LAYOUTS["git-annex"](source, tmp_path / "elsewhere")
    (linked / SHARD).resolve().unlink()
    for write in (lambda: compact(source, linked), lambda: pack(linked, tmp_path / "file")):
        with pytest.raises(LinkTargetError, match="git annex get"):
            write()
    assert (linked / SHARD).is_symlink()
