"""push and pull of a dataset repository, whose puts are commits."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import verify_cache
from storage.errors import TransferError, UnlistedFileError
from storage.sharing.transfer import pull, push
from tests.storage.object_store import FakeHub
from tests.storage.sharing.copies import NUM_FILES, QUICK, SHARD
from tests.storage.stopping import snapshot


def test_a_dataset_repository_takes_three_commits(
    source: Path, hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = "hf://datasets/owner/name@main"
    push(source, url, policy=QUICK)
    assert hub.files == snapshot(source)
    assert [len(commit) for commit in hub.commits] == [1, NUM_FILES - 2, 1]
    assert hub.commits[-1] == ["manifest.json"]
    assert push(source, url, policy=QUICK).num_copied_files == 0
    assert len(hub.commits) == 3
    pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)


def test_a_cache_on_the_hub_is_verified_there(source: Path, hub: FakeHub) -> None:
    url = "hf://datasets/owner/name"
    push(source, url, policy=QUICK)
    hub.files[".gitattributes"] = b"*.arrow filter=lfs"
    assert verify_cache(url).problems == ()
    hub.files["soft_targets/train-00000-of-00003 (1).arrow"] = b""
    [stray] = verify_cache(url).problems
    assert isinstance(stray, UnlistedFileError)
    assert stray.path == f"{url}/soft_targets/train-00000-of-00003 (1).arrow"


def test_a_commit_whose_acknowledgement_is_lost(source: Path, hub: FakeHub) -> None:
    hub.inject("lost acknowledgement", method="POST", part_of_path="/commit/", times=2)
    push(source, "hf://datasets/owner/name", policy=QUICK)
    assert hub.files == snapshot(source)
    assert [len(commit) for commit in hub.commits] == [1, NUM_FILES - 2, 1]


def test_a_copy_on_the_hub_that_was_damaged_is_mended(source: Path, hub: FakeHub, tmp_path: Path) -> None:
    push(source, "hf://datasets/owner/name", policy=QUICK)
    hub.files[SHARD] = hub.files[SHARD][:-1] + b"?"
    with pytest.raises(TransferError, match=rf"datasets/owner/name/{SHARD}: its bytes"):
        pull("hf://datasets/owner/name", tmp_path / "back", policy=QUICK)
    push(source, "hf://datasets/owner/name", policy=QUICK)
    assert hub.files == snapshot(source)
