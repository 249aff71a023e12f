"""Writers whose shards differ, at a real S3 API (moto): puts that are refused, and a race of two processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import open_cache
from storage.disk.hashing import sha256_file
from storage.remote.directory import RemoteDirectory
from storage.remote.retrying import RetryPolicy
from storage.writing.remote_destination import RemoteDestination
from tests.places import ROOT
from tests.storage.object_store import Answer, S3Proxy

QUICK = RetryPolicy(deadline_s=20, first_wait_s=0.001, longest_wait_s=0.01)


def test_a_shard_in_parts_is_put_in_s3_only_where_there_is_none(
    s3: S3Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_bytes = 5 << 20  # the least that S3 takes
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *sizes, **settings: part_bytes)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * 2 * part_bytes)
    second.write_bytes(b"2" * 2 * part_bytes)
    directory = RemoteDirectory(f"s3://{bucket}/cache", QUICK)
    assert [directory.create(path, "shard") for path in (first, second)] == [True, False]
    assert s3.count("POST", "uploadId") == 2, "both were sent in parts"
    assert directory.holds("shard", 2 * part_bytes, sha256_file(first))


RACE = """
import sys, time
from pathlib import Path
from storage import open_cache
from storage.disk.hashing import sha256_file
from storage.writing.remote_destination import RemoteDestination

url, rows, plan, work = sys.argv[1:]
source, identity = open_cache(Path(rows)), open_cache(Path(plan)).identity
destination = RemoteDestination(url, Path(work))
destination.begin_or_resume(identity)
print("ready", flush=True)
sys.stdin.readline()
for record in source.manifest.shards[:4]:
    shard = source.open_shard(record)
    batches = (shard.read_batch(index) for index in range(shard.num_record_batches))
    destination.stage_shard(identity, record.key, record.first_row_id, batches)()
"""


def test_two_processes_that_differ_in_every_shard_race_at_s3(
    make: SimpleNamespace, s3: S3Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lets their puts of a shard meet; one of them is killed on the way, and a third one finishes."""
    caches = [make.cache(tmp_path / f"cache-{seed}", seed=seed) for seed in (0, 1)]
    url, source = f"s3://{bucket}/cache", open_cache(caches[0])
    respond, meeting, num_met = s3.respond, threading.Barrier(2), 0

    def meet(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        nonlocal num_met
        if method == "PUT" and path.endswith(".arrow"):
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(10)
                num_met += 1
        return respond(method, path, headers, body)

    monkeypatch.setattr(s3, "respond", meet)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, url, str(rows), str(caches[0]), str(tmp_path / f"work-{rows.name}")],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for rows in caches
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")  # type: ignore[union-attr]
        racer.stdin.flush()  # type: ignore[union-attr]
    while num_met < 4:  # at the second shard
        time.sleep(0.005)
    racers[1].kill()
    meeting.abort()
    for racer in racers:
        racer.communicate(timeout=60)
    assert racers[0].returncode == 0
    there = RemoteDestination(url, tmp_path / "work", QUICK)
    keys = [record.key for record in source.manifest.shards[:4]]
    assert set(there.look_up(keys)) == set(keys)
    for key in keys:
        record = there.read_commit(key)
        assert record
        assert RemoteDirectory(url, QUICK).holds(key.path, record.num_bytes, record.sha256)
        assert record.sha256 in [shard.sha256 for cache in caches for shard in open_cache(cache).manifest.shards]
