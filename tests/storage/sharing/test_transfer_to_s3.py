"""push and pull of a store that speaks S3, whose answers fail in every way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import fsspec
import pytest

from storage import verify_cache
from storage.errors import MissingFileError, NoCacheError, TransferError, UnlistedFileError
from storage.remote.retrying import RetryPolicy
from storage.sharing.transfer import pull, push
from tests.storage.object_store import FAULTS, S3Proxy
from tests.storage.sharing.copies import COMMIT, IMPATIENT, NUM_FILES, NUM_SHARDS, QUICK, SHARD, push_at_once
from tests.storage.stopping import snapshot


def test_a_round_trip_through_s3(source: Path, s3: S3Proxy, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/deep/cache"
    assert push(source, url, policy=QUICK).num_copied_files == NUM_FILES
    assert push(source, url, policy=QUICK).num_copied_files == 0
    assert s3.count("PUT") == NUM_FILES
    pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)


def test_a_cache_in_s3_is_verified_there(source: Path, s3: S3Proxy, bucket: str) -> None:
    url = f"s3://{bucket}/deep/cache"
    push(source, url, policy=QUICK)
    found = verify_cache(url)
    assert (found.problems, found.remarks, found.num_shards) == ((), (), NUM_SHARDS)
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.pipe_file(f"{bucket}/deep/cache/samples/stray", b"stray")
    store.rm_file(f"{bucket}/deep/cache/{SHARD}")
    missing, stray = verify_cache(url).problems
    assert isinstance(missing, MissingFileError)
    assert missing.path == f"{url}/{SHARD}"
    assert isinstance(stray, UnlistedFileError)
    assert stray.path == f"{url}/samples/stray"


# A request meets them one after the other. Those that do not always fail a request come last.
IN_ORDER = sorted(FAULTS, key=("flipped bit", "slow first byte").count)


def test_a_push_survives(source: Path, s3: S3Proxy, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/cache"
    for fault in IN_ORDER:
        for method in ("GET", "PUT", "HEAD"):
            for name in ("plan.json", SHARD, COMMIT, "README.md", "manifest.json"):
                s3.inject(fault, method=method, part_of_path=name)
    push(source, url, policy=QUICK)
    num_faults = Counter(s3.faults)
    assert num_faults.keys() == set(FAULTS)
    assert all(num_faults[fault] >= 14 for fault in FAULTS if fault != "slow first byte"), "15 requests met each"
    s3.reset()
    pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)


def test_a_pull_survives(
    source: Path, s3: S3Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/cache"
    push(source, url, policy=QUICK)
    s3.reset()
    monkeypatch.setattr("storage.remote.directory.PIECE_BYTES", 1500)
    for fault in IN_ORDER:
        for name in ("manifest.json", SHARD, "README.md"):
            s3.inject(fault, method="GET", part_of_path=name, times=2)
    pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)
    assert Counter(s3.faults) == dict.fromkeys(FAULTS, 6)


def test_a_broken_connection_costs_one_piece(
    source: Path, s3: S3Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/cache"
    push(source, url, policy=QUICK)
    s3.reset()
    monkeypatch.setattr("storage.remote.directory.PIECE_BYTES", 1000)
    num_pieces = -(-(source / SHARD).stat().st_size // 1000)
    s3.inject("reset", method="GET", part_of_path=SHARD)
    pull(url, tmp_path / "back", policy=QUICK)
    assert num_pieces > 2
    assert s3.count("GET", SHARD) == num_pieces + 1


def test_a_push_past_its_deadline_goes_on_later(source: Path, s3: S3Proxy, bucket: str) -> None:
    url = f"s3://{bucket}/cache"
    s3.inject("503", method="PUT", part_of_path=COMMIT, times=10_000)
    with pytest.raises(TransferError, match=rf"{COMMIT}: gave up after 0\.05 s without progress.*run the same command"):
        push(source, url, policy=IMPATIENT, num_connections=1)
    sent = {path for method, path in s3.requests if method == "PUT" and COMMIT not in path}
    s3.reset()
    pushed = push(source, url, policy=QUICK)
    sent_again = {path for method, path in s3.requests if method == "PUT"}
    assert {path.rpartition("/")[2].partition("?")[0] for path in sent & sent_again} == {Path(SHARD).name}
    assert pushed.num_copied_files == len(sent_again) == s3.count("PUT")
    assert len(sent | sent_again) == NUM_FILES


def test_a_pull_past_its_deadline_goes_on_later(source: Path, s3: S3Proxy, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/cache"
    push(source, url, policy=QUICK)
    s3.reset()
    s3.inject("reset", method="GET", part_of_path=SHARD, times=10_000)
    with pytest.raises(TransferError, match=rf"{SHARD}: gave up after 0\.05 s"):
        pull(url, tmp_path / "back", policy=IMPATIENT, num_connections=1)
    s3.reset()
    pulled = pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)
    assert pulled.num_kept_files == 1
    assert s3.count("GET", ".arrow") == NUM_SHARDS - 1


def test_a_copy_in_s3_that_was_damaged_is_mended(source: Path, s3: S3Proxy, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/cache"
    push(source, url, policy=QUICK)
    content = bytearray((source / SHARD).read_bytes())
    content[100] ^= 1
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{bucket}/cache/{SHARD}", bytes(content))
    with pytest.raises(TransferError, match=rf"{SHARD}: .* the copy there is damaged"):
        pull(url, tmp_path / "back", policy=QUICK)
    push(source, url, policy=QUICK)
    pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)


def test_a_missing_bucket_is_final(source: Path, s3: S3Proxy, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"bucket does not exist.*check that the bucket") as caught:
        push(source, "s3://nosuchbucket/cache", policy=RetryPolicy(deadline_s=10_000))
    assert "\n" not in str(caught.value)
    with pytest.raises(NoCacheError):
        pull("s3://nosuchbucket/cache", tmp_path / "back", policy=RetryPolicy(deadline_s=10_000))
    with pytest.raises(TransferError, match=r"Invalid bucket name"):
        push(source, "s3://Not_A_Bucket!/cache", policy=RetryPolicy(deadline_s=10_000))


def test_missing_credentials_are_final(source: Path, s3: S3Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(TransferError, match=r"NoCredentialsError"):
        push(source, f"s3://{bucket}/cache", policy=RetryPolicy(deadline_s=10_000))


def test_two_pushes_of_equal_caches_race_in_s3(
    source: Path, pristine: Path, s3: S3Proxy, bucket: str, tmp_path: Path
) -> None:
    url = f"s3://{bucket}/cache"
    assert push_at_once([source, pristine], url) == []
    pull(url, tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)
