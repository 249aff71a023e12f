from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage import open_cache, verify_cache
from storage.errors import (
    CacheError,
    CacheMismatchError,
    ConfigError,
    FormatVersionError,
    HashMismatchError,
    IncompleteCacheError,
    MissingFileError,
    NoCacheError,
    RecordError,
    TransferError,
    UnfinishedRemoteError,
    UnsafePathError,
)
from storage.remote import remote_records
from storage.remote.retrying import RetryPolicy
from storage.sharing.transfer import pull, push
from tests.places import ROOT
from tests.storage.object_store import FAULTS, FakeHub, S3Proxy

QUICK = RetryPolicy(deadline_s=20, first_wait_s=0.001, longest_wait_s=0.01)
IMPATIENT = RetryPolicy(deadline_s=0.05, first_wait_s=0.001, longest_wait_s=0.01)
ROWS = {"soft_targets": {"train": [4, 3, 5]}, "samples": {"train": [2]}}
SHARD = "soft_targets/train-00001-of-00003.arrow"
COMMIT = "commits/soft_targets-train-00001.json"
NUM_SHARDS, NUM_FILES = 4, 4 * 2 + 3  # shards with their records; plan, card, manifest


@pytest.fixture(scope="session")
def pristine(make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.cache(tmp_path_factory.mktemp("to-copy") / "cache", ROWS)


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    """A finished cache of four shards and a card."""
    return Path(shutil.copytree(pristine, tmp_path / "source"))


@pytest.fixture
def another(make: SimpleNamespace, tmp_path: Path) -> Path:
    """A cache of the same shape from another teacher."""
    teacher = make.identity(ROWS).teacher | {"id": "somebody"}
    return make.cache(tmp_path / "another", ROWS, teacher=teacher)


@pytest.fixture(autouse=True)
def _empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://bucket/cache" if request.param == "memory" else f"file://{tmp_path}/remote/cache"


@pytest.fixture
def memory_puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is put in memory://, in order."""
    puts: list[str] = []
    put_file = MemoryFileSystem.put_file

    def noted(self: MemoryFileSystem, local: str, path: str, **settings: object) -> None:
        put_file(self, local, path, **settings)
        puts.append(path.partition("/cache/")[2])

    monkeypatch.setattr(MemoryFileSystem, "put_file", noted)
    return puts


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def remote_files() -> dict[str, bytes]:
    return {path.partition("/cache/")[2]: file.getvalue() for path, file in MemoryFileSystem.store.items()}


def damage(path: str) -> None:
    content = bytearray(remote_files()[path])
    content[len(content) // 2] ^= 1
    MemoryFileSystem().pipe_file(f"/bucket/cache/{path}", bytes(content))


def test_a_round_trip_is_equal_byte_for_byte(source: Path, url: str, tmp_path: Path) -> None:
    pushed = push(source, url, policy=QUICK)
    pulled = pull(url, tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)
    assert verify_cache(tmp_path / "back").problems == ()
    assert (pushed.num_shards, pushed.num_copied_files, pushed.num_kept_files) == (NUM_SHARDS, NUM_FILES, 0)
    assert pushed.num_copied_bytes == sum(map(len, files(source).values()))
    assert (pulled.num_shards, pulled.num_copied_files, pulled.num_kept_files) == (NUM_SHARDS, NUM_SHARDS + 1, 0)


def test_a_second_round_copies_nothing(source: Path, url: str, tmp_path: Path) -> None:
    for _ in range(2):
        pushed, pulled = push(source, url, policy=QUICK), pull(url, tmp_path / "back", policy=QUICK)
    assert (pushed.num_copied_files, pushed.num_copied_bytes, pushed.num_kept_files) == (0, 0, NUM_FILES)
    assert (pulled.num_copied_files, pulled.num_copied_bytes, pulled.num_kept_files) == (0, 0, NUM_SHARDS + 1)


def test_a_cache_with_a_tokenizer_makes_the_round(cache: object, url: str, tmp_path: Path) -> None:
    push(cache.path, url, policy=QUICK)
    pull(url, tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(cache.path)


def test_progress_adds_up(source: Path, url: str, tmp_path: Path) -> None:
    manifest = open_cache(source).manifest
    listed_bytes = sum(s.shard_bytes for s in manifest.shards) + sum(f.file_bytes for f in manifest.files)
    for _ in range(2):
        told: list[int] = []
        push(source, url, policy=QUICK, progress=told.append)
        assert sum(told) == 2 * listed_bytes
    told = []
    pull(url, tmp_path / "back", policy=QUICK, progress=told.append)
    assert sum(told) == listed_bytes


def test_the_order_of_publication_is_that_on_disk(source: Path, memory_puts: list[str]) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    assert memory_puts[0] == "plan.json"
    assert memory_puts[-1] == "manifest.json"
    for shard in open_cache(source).manifest.shards:
        assert memory_puts.index(shard.path) < memory_puts.index(shard.key.commit_path)
    assert sorted(memory_puts) == sorted(files(source))


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
    assert remote_files() == files(source)
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
    left = files(tmp_path / "back")
    assert "manifest.json" not in left
    assert left.items() <= files(source).items(), "no halves, no leftovers"
    arrived, reads[:] = {name for name in reads if name != "manifest.json"}, []
    monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)
    assert not arrived & set(reads), "what was here was not fetched again"


def test_a_local_file_that_differs_is_fetched_again(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    back = Path(shutil.copytree(source, tmp_path / "back"))
    (back / "manifest.json").unlink()
    (back / ".tmp-0123-leftover").write_text("half")
    content = (back / SHARD).read_bytes()
    (back / SHARD).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    pulled = pull("memory://bucket/cache", back, policy=QUICK)
    assert files(back) == files(source)
    assert pulled.num_copied_files == 1


def test_a_pull_run_again_brings_back_what_is_lost(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    back = tmp_path / "back"
    pull("memory://bucket/cache", back, policy=QUICK)
    for name, num_copied in ((SHARD, 1), ("README.md", 1), (COMMIT, 0), ("plan.json", 0)):
        (back / name).unlink()
        assert pull("memory://bucket/cache", back, policy=QUICK).num_copied_files == num_copied
        assert files(back) == files(source)
    (back / "README.md").write_text("cut")
    pull("memory://bucket/cache", back, policy=QUICK)
    assert files(back) == files(source)


@pytest.mark.parametrize("name", [SHARD, COMMIT, "README.md"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_damage_there_is_found_and_mended_by_a_push(source: Path, name: str, is_finished: bool) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    if not is_finished:
        MemoryFileSystem().rm("/bucket/cache/manifest.json")
    damage(name)
    pushed = push(source, "memory://bucket/cache", policy=QUICK)
    assert remote_files() == files(source)
    assert pushed.num_copied_files >= 1
    assert pushed.num_copied_files + pushed.num_kept_files == NUM_FILES


def test_a_readme_of_something_else_stays(source: Path, url: str, tmp_path: Path) -> None:
    target = fsspec.filesystem(url.partition(":")[0])
    target.makedirs(url, exist_ok=True)
    target.pipe_file(f"{url}/README.md", b"my notes")
    with pytest.raises(ConfigError, match=r"^.*bucket/cache: holds a README|remote/cache: holds a README"):
        push(source, url, policy=QUICK)
    assert target.cat_file(f"{url}/README.md") == b"my notes"
    assert not target.exists(f"{url}/plan.json")
    target.rm_file(f"{url}/README.md")
    push(source, url, policy=QUICK)
    target.rm_file(f"{url}/plan.json")
    push(source, url, policy=QUICK)  # the README.md there is a cache's own
    assert target.exists(f"{url}/plan.json")


def test_damage_that_cannot_be_mended_leaves_no_manifest(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_file = MemoryFileSystem.put_file

    def spoils(self: MemoryFileSystem, local: str, path: str, **settings: object) -> None:
        put_file(self, local, path, **settings)
        if path.endswith(SHARD):
            damage(SHARD)

    monkeypatch.setattr(MemoryFileSystem, "put_file", spoils)
    with pytest.raises(TransferError, match=rf"{SHARD}: gave up .* read back differs"):
        push(source, "memory://bucket/cache", policy=IMPATIENT)
    assert "manifest.json" not in remote_files()


def test_damage_there_is_refused_by_a_pull(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    damage(SHARD)
    with pytest.raises(TransferError, match=rf"bucket/cache/{SHARD}: its bytes .* damaged"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    left = files(tmp_path / "back")
    assert SHARD not in left
    assert COMMIT not in left
    assert "manifest.json" not in left


def test_a_record_without_its_shard(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    MemoryFileSystem().rm(f"/bucket/cache/{SHARD}")
    with pytest.raises(TransferError, match=rf"{SHARD}: not found"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    pushed = push(source, "memory://bucket/cache", policy=QUICK)
    assert remote_files() == files(source)
    assert pushed.num_copied_files == 2
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)


@pytest.mark.parametrize("is_finished", [True, False])
def test_another_cache_is_not_mixed_in(source: Path, another: Path, tmp_path: Path, is_finished: bool) -> None:
    push(another, "memory://bucket/cache", policy=QUICK)
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    if not is_finished:
        MemoryFileSystem().rm("/bucket/cache/manifest.json")
        (tmp_path / "back" / "manifest.json").unlink()
    there, here = remote_files(), files(tmp_path / "back")
    with pytest.raises(CacheMismatchError, match=r"memory://bucket/cache: .*teacher\.id = 'somebody'.*'nobody'"):
        push(source, "memory://bucket/cache", policy=QUICK)
    assert remote_files() == there
    push(source, "memory://elsewhere/cache", policy=QUICK)
    with pytest.raises(CacheMismatchError, match=r"back: .*teacher\.id = 'somebody'.*'nobody'"):
        pull("memory://elsewhere/cache", tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == here


def test_equal_plans_with_other_shards_are_another_cache(source: Path, tmp_path: Path, forge: SimpleNamespace) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    (source / SHARD).write_bytes((source / SHARD).read_bytes()[:-1] + b"?")
    forge.accept_shard(source, SHARD)
    with pytest.raises(CacheMismatchError, match=r"shards\[1\]\.sha256"):
        push(source, "memory://bucket/cache", policy=QUICK)


def test_a_pull_goes_only_where_nothing_else_is(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"target: holds something that is not a cache"):
        pull("memory://bucket/cache", target, policy=QUICK)
    assert list(files(target)) == ["thesis.tex"]
    with pytest.raises(ConfigError, match=r"thesis\.tex: not a directory"):
        pull("memory://bucket/cache", target / "thesis.tex", policy=QUICK)


def test_two_pulls_do_not_share_a_directory(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    (tmp_path / "back").mkdir()
    held = os.open(tmp_path / "back", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another pull"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
    os.close(held)
    pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)


def test_what_cannot_be_pushed_is_not_begun(source: Path, tmp_path: Path, forge: SimpleNamespace) -> None:
    with pytest.raises(NoCacheError):
        push(tmp_path / "nothing", "memory://bucket/cache")
    forge.record(source / COMMIT, lambda record: record.update(num_tokens=1))
    with pytest.raises(RecordError, match=COMMIT):
        push(source, "memory://bucket/cache")
    (source / "manifest.json").unlink()
    with pytest.raises(IncompleteCacheError):
        push(source, "memory://bucket/cache")
    assert remote_files() == {}
    for url in ("nosuchthing://bucket/cache", "s3://"):
        with pytest.raises(ConfigError):
            pull(url, tmp_path / "back")
    with pytest.raises(ConfigError, match="num_connections is 0"):
        pull("memory://bucket/cache", tmp_path / "back", num_connections=0)


@pytest.mark.parametrize(("damaged", "error"), [("flipped", HashMismatchError), ("missing", MissingFileError)])
def test_local_damage_is_not_pushed(source: Path, damaged: str, error: type[Exception]) -> None:
    content = bytearray((source / SHARD).read_bytes())
    content[50] ^= 1
    (source / SHARD).unlink() if damaged == "missing" else (source / SHARD).write_bytes(content)
    with pytest.raises(error, match=SHARD):
        push(source, "memory://bucket/cache", policy=QUICK)
    assert not {SHARD, COMMIT, "manifest.json"} & remote_files().keys()


def publish(source: Path) -> None:
    """Put a directory in memory:// as a stranger would, without a look at it."""
    for name, content in files(source).items():
        MemoryFileSystem().pipe_file(f"/bucket/cache/{name}", content)


UNSAFE_PATHS = (
    "../outside",
    "/tmp/outside",
    "a/../../outside",
    "C:/outside",
    "manifest.json",
    "Manifest.JSON",
    "plan.json",
    COMMIT,
    SHARD,
    "soft_targets/extra.arrow",
    ".work/lock",
    "x/.tmp-file",
)


@pytest.mark.parametrize(
    ("path", "error"), [*((path, UnsafePathError) for path in UNSAFE_PATHS), ("README.md", RecordError)]
)
def test_a_stranger_s_path_is_refused(
    source: Path, tmp_path: Path, forge: SimpleNamespace, path: str, error: type[CacheError]
) -> None:
    forge.record(
        source / "manifest.json", lambda manifest: manifest["files"].append(manifest["files"][0] | {"path": path})
    )
    publish(source)
    if path not in remote_files():
        MemoryFileSystem().pipe_file(f"/bucket/cache/{path}", remote_files()["README.md"])
    with pytest.raises(error, match=r"memory://bucket/cache") as caught:
        pull("memory://bucket/cache", tmp_path / "deep" / "back", policy=QUICK)
    assert caught.type is error
    assert not list(tmp_path.rglob("*outside*"))
    assert "manifest.json" not in files(tmp_path / "deep")


@pytest.mark.parametrize("change", [{"file_bytes": -1}, {"sha256": "0" * 63}, {"sha256": "A" * 64}])
def test_a_stranger_s_malformed_file_record_is_refused(
    source: Path, tmp_path: Path, forge: SimpleNamespace, change: dict[str, object]
) -> None:
    forge.record(source / "manifest.json", lambda manifest: manifest["files"][0].update(change))
    publish(source)
    with pytest.raises(RecordError, match=r"README\.md has a negative size or a malformed sha256"):
        pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)


def test_a_stranger_s_manifest_is_read_strictly(
    source: Path, tmp_path: Path, forge: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (source / "manifest.json").read_bytes()

    def refused(error: type[Exception], said: str) -> None:
        publish(source)
        with pytest.raises(error, match=said):
            pull("memory://bucket/cache", tmp_path / "back", policy=QUICK)
        assert not (tmp_path / "back").exists()

    (source / "manifest.json").write_bytes(content.replace(b"nobody", b"nobodY"))
    refused(RecordError, r"^memory://bucket/cache/manifest\.json: damaged")
    (source / "manifest.json").write_bytes(content)
    forge.record(source / "manifest.json", lambda manifest: manifest.update(format_version=2))
    refused(FormatVersionError, r"^memory://bucket/cache/manifest\.json: format version 2")
    (source / "manifest.json").write_bytes(content)
    monkeypatch.setattr(remote_records, "MAX_RECORD_BYTES", len(content) - 1)
    refused(TransferError, rf"manifest\.json: is {len(content)} bytes, more than")


def test_a_link_in_the_target_is_not_followed(source: Path, tmp_path: Path) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    back = Path(shutil.copytree(source, tmp_path / "back"))
    (back / "manifest.json").unlink()
    shutil.move(back / "soft_targets", tmp_path / "aside")
    (back / "soft_targets").symlink_to(tmp_path / "aside")
    (tmp_path / "aside" / Path(SHARD).name).unlink()
    with pytest.raises(UnsafePathError):
        pull("memory://bucket/cache", back, policy=QUICK)
    assert not (tmp_path / "aside" / Path(SHARD).name).exists()


def test_a_bug_in_a_thread_keeps_its_traceback_and_stops_the_rest(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(source, "memory://bucket/cache", policy=QUICK)
    waiting = threading.Event()

    def broken(self: MemoryFileSystem, path: str, **limits: int) -> bytes:
        if path.endswith(SHARD):
            assert waiting.wait(30)
            raise KeyError("bug")
        if path.endswith(".arrow"):
            waiting.set()
            raise OSError("tried again for twenty seconds, unless the others stop")
        return MemoryFileSystem.store[path].getvalue()

    monkeypatch.setattr(MemoryFileSystem, "cat_file", broken)
    policy = RetryPolicy(deadline_s=10_000, first_wait_s=10_000, longest_wait_s=10_000)
    with pytest.raises(KeyError, match="bug"):
        pull("memory://bucket/cache", tmp_path / "back", policy=policy)
    assert not any(thread.name == "teachonce-transfer" for thread in threading.enumerate())


def push_at_once(directories: list[Path], url: str) -> list[BaseException]:
    """Push every directory to the same place, each from a thread of its own; what any of them raised."""
    barrier, failures = threading.Barrier(len(directories)), []

    def race(directory: Path) -> None:
        barrier.wait()
        try:
            push(directory, url, policy=QUICK)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=race, args=(directory,)) for directory in directories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_two_pushes_of_equal_caches_race(source: Path, pristine: Path, tmp_path: Path) -> None:
    assert push_at_once([source, pristine], f"file://{tmp_path}/remote") == []
    assert files(tmp_path / "remote") == files(source)


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
    assert "manifest.json" not in files(tmp_path / "back")
    pulled = pull(f"file://{tmp_path}/remote", tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)
    assert pulled.num_kept_files == 1


def test_a_round_trip_through_s3(source: Path, s3: S3Proxy, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/deep/cache"
    assert push(source, url, policy=QUICK).num_copied_files == NUM_FILES
    assert push(source, url, policy=QUICK).num_copied_files == 0
    assert s3.count("PUT") == NUM_FILES
    pull(url, tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_survives(source: Path, s3: S3Proxy, bucket: str, tmp_path: Path, fault: str) -> None:
    url = f"s3://{bucket}/cache"
    for method in ("GET", "PUT", "HEAD"):
        for name in ("plan.json", SHARD, COMMIT, "README.md", "manifest.json"):
            s3.inject(fault, method=method, part_of_path=name)
    push(source, url, policy=QUICK)
    assert set(s3.faults) == {fault}
    assert len(s3.faults) >= 14
    s3.reset()
    pull(url, tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_pull_survives(
    source: Path, s3: S3Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    url = f"s3://{bucket}/cache"
    push(source, url, policy=QUICK)
    s3.reset()
    monkeypatch.setattr("storage.remote.directory.PIECE_BYTES", 1500)
    for name in ("manifest.json", SHARD, "README.md"):
        s3.inject(fault, method="GET", part_of_path=name, times=2)
    pull(url, tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)
    assert s3.faults == [fault] * 6


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
    assert files(tmp_path / "back") == files(source)
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
    assert files(tmp_path / "back") == files(source)


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
    assert files(tmp_path / "back") == files(source)


def test_a_dataset_repository_takes_three_commits(
    source: Path, hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = "hf://datasets/owner/name@main"
    push(source, url, policy=QUICK)
    assert hub.files == files(source)
    assert [len(commit) for commit in hub.commits] == [1, NUM_FILES - 2, 1]
    assert hub.commits[-1] == ["manifest.json"]
    assert push(source, url, policy=QUICK).num_copied_files == 0
    assert len(hub.commits) == 3
    pull(url, tmp_path / "back", policy=QUICK)
    assert files(tmp_path / "back") == files(source)


def test_a_commit_whose_acknowledgement_is_lost(source: Path, hub: FakeHub) -> None:
    hub.inject("lost acknowledgement", method="POST", part_of_path="/commit/", times=2)
    push(source, "hf://datasets/owner/name", policy=QUICK)
    assert hub.files == files(source)
    assert [len(commit) for commit in hub.commits] == [1, NUM_FILES - 2, 1]


def test_a_copy_on_the_hub_that_was_damaged_is_mended(source: Path, hub: FakeHub, tmp_path: Path) -> None:
    push(source, "hf://datasets/owner/name", policy=QUICK)
    hub.files[SHARD] = hub.files[SHARD][:-1] + b"?"
    with pytest.raises(TransferError, match=rf"datasets/owner/name/{SHARD}: its bytes"):
        pull("hf://datasets/owner/name", tmp_path / "back", policy=QUICK)
    push(source, "hf://datasets/owner/name", policy=QUICK)
    assert hub.files == files(source)
