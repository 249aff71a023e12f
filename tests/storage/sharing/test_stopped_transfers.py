"""push and pull that end anywhere go on where they were."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.errors import NoCacheError, TransferError, UnfinishedRemoteError
from storage.sharing.transfer import pull, push
from tests.places import ROOT
from tests.storage.sharing.copies import NUM_FILES, NUM_SHARDS, QUICK, SHARD, remote_files
from tests.storage.stopping import snapshot


@pytest.mark.parametrize("num_puts", range(NUM_FILES))
def test_a_push_that_ends_anywhere_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_puts: list[str], num_puts: int
) -> None:
    with monkeypatch.context() as patch:
        put_file = MemoryFileSystem.put_file

        def ends(self: MemoryFileSystem, local: str, path: str, **settings: object) -> None:
            if len(memory_puts) == num_puts:
                raise PermissionError("the token has expired")
            put_file(self, local, path, **settings)

        patch.setattr(MemoryFileSystem, "put_file", ends)
        with pytest.raises(TransferError, match="the token has expired"):
            push(source, "memory://bucket/cache", policy=QUICK, num_connections=1)
    assert "manifest.json" not in remote_files()
    begun = UnfinishedRemoteError if "plan.json" in remote_files() else NoCacheError
    assert (begun is NoCacheError) == (num_puts == 0)
    with pytest.raises(begun, match=r"^memory://bucket/cache: "):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    assert not (tmp_path / "back").exists()
    before = [name for name in memory_puts if not name.endswith(".arrow")]
    push(source, "memory://bucket/cache", policy=QUICK)
    assert remote_files() == snapshot(source)
    assert all(memory_puts.count(name) == 1 for name in before), "what was there was not sent again"


@pytest.mark.parametrize("num_reads", range(1, NUM_SHARDS + 2))
def test_a_pull_that_ends_anywhere_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_reads: int
) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    cat_file, reads = MemoryFileSystem.cat_file, []

    def noted(self: MemoryFileSystem, path: str, **limits: int) -> bytes:
        reads.append(path.partition("/cache/")[2])
        return cat_file(self, path, **limits)

    def ends(self: MemoryFileSystem, path: str, **limits: int) -> bytes:
        if len(reads) == num_reads:
            raise PermissionError("the token has expired")
        return noted(self, path, **limits)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", ends)
        with pytest.raises(TransferError, match="the token has expired"):
            pull("memory://bucket/cache", tmp_path / "back", policy=QUICK, num_connections=1)
    left = snapshot(tmp_path / "back")
    assert "manifest.json" not in left
    assert left.items() <= snapshot(source).items(), "no halves, no leftovers"
    arrived, reads[:] = {name for name in reads if name != "manifest.json"}, []
    monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)
    assert not arrived & set(reads), "what was here was not fetched again"


_INTERRUPTED = """
import sys, time
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from storage.command import run_command
from storage.sharing.transfer import pull

cat_file = LocalFileSystem.cat_file

def slow(self, path, **limits):
    if path.endswith({slow!r}):
        print("reading", flush=True)
        time.sleep(600)
    return cat_file(self, path, **limits)

LocalFileSystem.cat_file = slow
run_command(lambda: print(pull(sys.argv[1], Path(sys.argv[2]), num_connections=1)))
"""


def test_ctrl_c_leaves_at_once_and_what_is_there_can_be_gone_on_with(source: Path, tmp_path: Path) -> None:
    push(source, f"file://{tmp_path}/remote", policy=QUICK)
    command = [
        sys.executable,
        "-c",
        _INTERRUPTED.format(slow=SHARD),
        f"file://{tmp_path}/remote",
        str(tmp_path / "back"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        try:
            assert process.stdout.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "stopped; to go on, run the same line again" in said
    assert "manifest.json" not in snapshot(tmp_path / "back")
    pulled = pull(f"file://{tmp_path}/remote", tmp_path / "back", policy=QUICK)
    assert snapshot(tmp_path / "back") == snapshot(source)
    assert pulled.num_kept_files == 1
