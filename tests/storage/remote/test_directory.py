from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import open_cache
from storage.errors import ConfigError, MissingExtraError, NoCacheError, TransferError, WriteRefusedError
from storage.remote import directory as directory_module
from storage.remote import retrying
from storage.remote.directory import RemoteDirectory, is_remote_url
from storage.remote.retrying import RetryPolicy
from tests.storage.object_store import FakeHub

CONTENT = bytes(range(256)) * 10
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(deadline_s=5, first_wait_s=0.001, longest_wait_s=0.002)


class FakeTime:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.now_s += seconds

    def clock(self) -> float:
        return self.now_s


class Flaky:
    """cat_file that does what a script says, one entry a call, and then what it should."""

    def __init__(self, script: list[object]) -> None:
        self.script = list(script)
        self.num_calls = 0

    def cat_file(self, store: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        self.num_calls += 1
        content: bytes = store.store[store._strip_protocol(path)].getvalue()[start:end]
        step = self.script.pop(0) if self.script else None
        match step:
            case BaseException():
                raise step
            case "short":
                return content[:-1]
            case "long":
                return content + b"!"
            case "flipped":
                return bytes([content[0] ^ 1]) + content[1:]
            case _:
                return content


@pytest.fixture(autouse=True)
def _empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Flaky]:
    def install(*script: object) -> Flaky:
        made = Flaky(list(script))
        monkeypatch.setattr(
            MemoryFileSystem, "cat_file", lambda self, path, start, end: made.cat_file(self, path, start, end)
        )
        return made

    return install


def there(content: bytes = CONTENT, policy: RetryPolicy = QUICK, time: FakeTime | None = None) -> RemoteDirectory:
    """memory://cache with one file."""
    MemoryFileSystem().pipe_file("/cache/file", content)
    return RemoteDirectory("memory://cache", policy, **({"sleep": time.sleep, "clock": time.clock} if time else {}))


def made_up(module: str, name: str, base: type[Exception] = Exception, **attributes: object) -> Exception:
    """An error as a package that need not be installed raises it."""
    return type(name, (base,), {"__module__": module, **attributes})("it says so")


@pytest.mark.parametrize(
    "text", ["s3://bucket", "gs://bucket/a", "file:///a/b", "memory://x", "hf://datasets/a/b", "s3a://b", "HTTPS://h/p"]
)
def test_urls_are_urls(text: str) -> None:
    assert is_remote_url(text)


@pytest.mark.parametrize(
    "text",
    ["/a/b", "a/b", "cache", "C:/cache", "C://cache", r"C:\cache", "", "://x", "a:b", "s3:/x", "./s3://x", "1s://"],
)
def test_paths_are_not_urls(text: str) -> None:
    assert not is_remote_url(text)


@pytest.mark.parametrize(
    "settings",
    [{"deadline_s": -1}, {"first_wait_s": 0}, {"first_wait_s": 2, "longest_wait_s": 1}, {"first_wait_s": -1}],
)
def test_impossible_policies_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="deadline"):
        RetryPolicy(**settings)


@pytest.mark.parametrize(
    "url", ["nosuchthing://a/b", "s3://", "file:///", "/plain/path", "hf://datasets/owner", "hf://a/b"]
)
def test_what_cannot_be_opened_is_one_line(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteDirectory(url)
    assert url.rstrip("/") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "dropbox", {"class": "no_dropbox.D", "err": "get dropboxfs"})
    with pytest.raises(ConfigError, match="get dropboxfs"):
        RemoteDirectory("dropbox://a/b")


def test_the_extra_that_brings_s3_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "s3", {"class": "no_s3fs.S3", "err": "Install s3fs to access S3"})
    with pytest.raises(MissingExtraError, match=r"s3://bucket/cache: S3 needs s3fs, .* -e \.\[s3\]"):
        RemoteDirectory("s3://bucket/cache")


def test_passwords_in_urls_are_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteDirectory("nosuchthing://me:secret@host/a")
    assert "secret" not in str(caught.value)
    directory = RemoteDirectory("memory://me:secret@host/a", QUICK)

    def quote() -> None:
        raise PermissionError('cannot log in to "memory://me:secret@host/a"')

    with pytest.raises(TransferError, match="memory://…@host/a") as refused:
        directory.retrying("file", quote)
    assert "secret" not in str(refused.value)
    with pytest.raises(NoCacheError) as missed:
        open_cache("memory://me:secret@host/a")
    assert "secret" not in str(missed.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError("reset"),
        ConnectionResetError(),
        TimeoutError(),
        made_up("botocore.exceptions", "ReadTimeoutError"),
        made_up("aiohttp.client_exceptions", "ClientPayloadError"),
        made_up("gcsfs.retry", "HttpError", code=503),
        made_up("gcsfs.retry", "HttpError", code=429),
        made_up("aiohttp", "ClientResponseError", status=500),
    ],
    ids=repr,
)
def test_what_looks_like_the_network_is_tried_again(flaky: Callable[..., Flaky], error: Exception) -> None:
    calls = flaky(error, error, "short")
    assert there().read_small("file", len(CONTENT)) == CONTENT
    assert calls.num_calls == 4


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("no"), "permission denied .* credentials"),
        (FileNotFoundError("no bucket"), "not found .* bucket"),
        (made_up("botocore.exceptions", "NoCredentialsError"), "NoCredentialsError: it says so"),
        (made_up("botocore.exceptions", "ParamValidationError"), ".*it says so"),
        (made_up("gcsfs.retry", "HttpError", code=401), ".*it says so"),
        (made_up("aiohttp", "ClientResponseError", status=403), ".*it says so"),
        (made_up("aiohttp", "ClientResponseError", status=501), ".*it says so"),
    ],
)
def test_what_is_final_is_reported_at_once(flaky: Callable[..., Flaky], error: Exception, said: str) -> None:
    calls, time = flaky(error), FakeTime()
    with pytest.raises(TransferError, match=f"memory://cache/file: {said}") as caught:
        there(time=time).read_small("file", len(CONTENT))
    assert calls.num_calls == 1
    assert time.waits_s == []
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_a_status_of_aiohttp_is_read_without_its_warning(flaky: Callable[..., Flaky]) -> None:
    request = SimpleNamespace(real_url="http://host/file")
    error = pytest.importorskip("aiohttp").ClientResponseError(request, (), status=403)
    calls = flaky(error)
    with pytest.raises(TransferError):
        there().read_small("file", len(CONTENT))
    assert calls.num_calls == 1


@pytest.mark.parametrize("error", [KeyError("bug"), TypeError("bug"), ValueError("bug"), AssertionError()])
def test_bugs_keep_their_traceback(flaky: Callable[..., Flaky], error: Exception) -> None:
    flaky(error)
    with pytest.raises(type(error)) as caught:
        there().read_small("file", len(CONTENT))
    assert caught.value is error


def test_waits_are_random_doubled_and_bounded_until_the_deadline(flaky: Callable[..., Flaky]) -> None:
    time = FakeTime()
    flaky(*[OSError(f"failure {i}") for i in range(10_000)])
    policy = RetryPolicy(deadline_s=100, first_wait_s=1, longest_wait_s=8)
    with pytest.raises(TransferError, match=r"memory://cache/file: gave up after 100 s .* failure"):
        there(policy=policy, time=time).read_small("file", len(CONTENT))
    assert time.now_s == pytest.approx(100)
    bounds = [1, 2, 4] + [8] * len(time.waits_s)
    assert all(0 <= wait <= bound for wait, bound in zip(time.waits_s, bounds, strict=False))
    assert max(time.waits_s) > 1
    assert len(set(time.waits_s)) == len(time.waits_s)


@pytest.mark.parametrize("is_known", [True, False])
def test_the_clock_of_a_download_starts_again_with_every_new_piece(
    flaky: Callable[..., Flaky], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_known: bool
) -> None:
    monkeypatch.setattr(directory_module, "PIECE_BYTES", 256)
    policy, time = RetryPolicy(deadline_s=10, first_wait_s=8, longest_wait_s=8), FakeTime()
    monkeypatch.setattr(retrying._JITTER, "uniform", lambda low, high: high)
    flaky(*([OSError(), None] * 10))  # each piece fails once: 80 s in all, 8 s at a time
    directory = there(policy=policy, time=time)
    if is_known:
        directory.download("file", tmp_path / "file", len(CONTENT), SHA256)
    else:
        directory.fetch("file", tmp_path / "file")
    assert time.now_s == 80


def test_small_files_are_bounded_and_may_be_missing_or_empty() -> None:
    directory = there()
    assert directory.read_small("nothing", 10) is None
    assert directory.num_bytes("nothing") is None
    assert directory.num_bytes("file") == len(CONTENT)
    assert directory.num_bytes("") is None  # a directory is no file
    with pytest.raises(TransferError, match=f"is {len(CONTENT)} bytes, more than the 10 allowed"):
        directory.read_small("file", 10)
    assert there(b"").read_small("file", 10) == b""


@settings(max_examples=60)
@given(
    num_bytes=st.integers(0, 700),
    piece_bytes=st.integers(1, 300),
    script=st.lists(st.sampled_from([None, "short", "long", "flipped", OSError("reset")]), max_size=8),
)
def test_any_faults_end_in_the_right_bytes_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, num_bytes: int, piece_bytes: int, script: list[object]
) -> None:
    directory, content, told = tmp_path_factory.mktemp("download"), CONTENT[:num_bytes], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory_module, "PIECE_BYTES", piece_bytes)
        made = Flaky(script)
        patch.setattr(
            MemoryFileSystem, "cat_file", lambda self, path, start, end: made.cat_file(self, path, start, end)
        )
        failures = []
        try:
            there(content, time=FakeTime()).download(
                "file", directory / "file", num_bytes, hashlib.sha256(content).hexdigest(), told.append
            )
        except TransferError as error:
            failures.append(str(error))
    left = {path.name: path.read_bytes() for path in directory.iterdir()}
    if failures:
        assert "twice" in failures[0]
        assert script.count("flipped") > 1, "given up though no bytes were wrong twice"
        assert left == {}
    else:
        assert left == {"file": content}
        assert sum(told) == num_bytes


def test_a_damaged_copy_is_given_up_when_the_same_bytes_come_twice(tmp_path: Path) -> None:
    directory = there(b"x" + CONTENT[1:], time=(time := FakeTime()))
    with pytest.raises(TransferError, match=r"memory://cache/file: its bytes have sha256 .* twice"):
        directory.download("file", tmp_path / "file", len(CONTENT), SHA256)
    assert len(time.waits_s) == 1
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_the_recorded_bytes_are_taken(tmp_path: Path) -> None:
    there(CONTENT + b"and more").download("file", tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_gets_nothing_written(flaky: Callable[..., Flaky], tmp_path: Path) -> None:
    flaky(*["long"] * 1000)
    with pytest.raises(TransferError, match=f"{len(CONTENT) + 1} bytes came for the {len(CONTENT)}"):
        there(policy=RetryPolicy(deadline_s=1), time=FakeTime()).download(
            "file", tmp_path / "file", len(CONTENT), SHA256
        )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_a_full_disk_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransferError, match="memory://cache/nothing: not found"):
        there().download("nothing", tmp_path / "file", len(CONTENT), SHA256)
    (tmp_path / "blocked").write_text("a file where a directory should be")
    with pytest.raises(WriteRefusedError, match="blocked"):
        there().download("file", tmp_path / "blocked" / "file", len(CONTENT), SHA256)


def test_holding_means_size_and_every_byte() -> None:
    directory, told = there(), []
    assert directory.holds("file", len(CONTENT), SHA256, told.append)
    assert sum(told) == len(CONTENT)
    assert not directory.holds("file", len(CONTENT) - 1, hashlib.sha256(CONTENT[:-1]).hexdigest())
    assert not directory.holds("file", len(CONTENT), hashlib.sha256(b"").hexdigest())
    assert not directory.holds("nothing", 0, hashlib.sha256(b"").hexdigest())


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_puts_replace_what_is_there(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(CONTENT)
    url = "memory://cache" if scheme == "memory" else f"file://{tmp_path}/cache"
    directory = RemoteDirectory(url, QUICK)
    for content in (CONTENT, b"", b"other"):
        (tmp_path / "local").write_bytes(content)
        directory.put(tmp_path / "local", "a/b/file")
        assert directory.read_small("a/b/file", 10_000) == content


def test_a_put_on_a_disk_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").write_bytes(CONTENT)
    directory = RemoteDirectory(f"file://{tmp_path}/cache", RetryPolicy(deadline_s=0))
    directory.put(tmp_path / "local", "file")

    def half(source: object, target: object) -> None:
        target.write(b"half")
        raise OSError("stale handle")

    monkeypatch.setattr("storage.remote.stores.shutil.copyfileobj", half)
    with pytest.raises(TransferError, match="stale handle"):
        directory.put(tmp_path / "local", "file")
    assert (tmp_path / "cache" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["file"]


def test_opening_needs_no_network_package(run_python: Callable[..., object]) -> None:
    done = run_python(
        "import sys, storage.remote.directory; print({'fsspec', 'huggingface_hub', 's3fs'} & set(sys.modules))"
    )
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    "url", ["hf://datasets/owner/name", "hf://datasets/owner/name@main", "hf://datasets/owner/name/a/b"]
)
def test_a_dataset_repository_is_a_directory_whose_puts_are_commits(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(
        directory_module, "PIECE_BYTES", 100
    )  # the Hub sends small text files whole, whatever is asked for
    directory = RemoteDirectory(url, QUICK)
    contents = {"README.md": "→ a card\n".encode() * 90, "x/data.arrow": CONTENT}
    for name, content in contents.items():
        (tmp_path / Path(name).name).write_bytes(content)
    assert directory.num_bytes("README.md") is None
    directory.put_all([(tmp_path / Path(name).name, name) for name in contents])
    assert len(hub.commits) == 1
    for name, content in contents.items():
        assert directory.num_bytes(name) == len(content)
        assert directory.read_small(name, len(content)) == content
        directory.download(name, tmp_path / "back", len(content), hashlib.sha256(content).hexdigest())
        assert (tmp_path / "back").read_bytes() == content
    directory.put(tmp_path / "README.md", "README.md")
    assert len(hub.commits) == 1, "an unchanged file needs no commit"


@pytest.mark.parametrize("fault", ["503", "short body", "reset", "lost acknowledgement"])
def test_a_faulty_hub_is_tried_again(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(directory_module, "PIECE_BYTES", 1000)
    (tmp_path / "data.arrow").write_bytes(CONTENT)
    (tmp_path / "README.md").write_text("a card")
    for method, part_of_path in (
        ("POST", "/validate-yaml"),
        ("POST", "/commit/"),
        ("POST", "/preupload/"),
        ("PUT", "/large/"),
        ("GET", "/resolve/"),
    ):
        hub.inject(fault, method=method, part_of_path=part_of_path)
    directory = RemoteDirectory("hf://datasets/owner/name", QUICK)
    directory.put_all([(tmp_path / name, name) for name in ("data.arrow", "README.md")])
    directory.download("data.arrow", tmp_path / "back", len(CONTENT), SHA256)
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert hub.faults == [fault] * 5
    assert all(added == ["README.md", "data.arrow"] for added in hub.commits)


def test_a_repository_that_is_not_there_is_final(hub: FakeHub, tmp_path: Path) -> None:
    directory = RemoteDirectory("hf://datasets/owner/other", QUICK)
    with pytest.raises(TransferError, match="no such dataset repository"):
        directory.num_bytes("file")
    (tmp_path / "file").write_bytes(CONTENT)
    with pytest.raises(TransferError, match=r"create it, or log in"):
        directory.put(tmp_path / "file", "file")
    assert hub.count("POST") == 1


def test_a_file_that_another_process_removes_while_it_is_read_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RemoteDirectory("memory://bucket/cache", QUICK)
    (tmp_path / "local").write_bytes(CONTENT)
    directory.put(tmp_path / "local", "file")

    def vanished(*arguments: object, **settings: object) -> bytes:
        raise FileNotFoundError("file")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", vanished)
        assert not directory.holds("file", len(CONTENT), SHA256)
        assert directory.fetch("file", tmp_path / "copy") is None
    found = directory.fetch("file", tmp_path / "copy")
    assert found
    assert (found.file_bytes, found.sha256, (tmp_path / "copy").read_bytes()) == (len(CONTENT), SHA256, CONTENT)
