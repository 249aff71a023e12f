"""Read and write files below a URL: any file system that fsspec knows, or a dataset repository of the Hugging Face Hub.

Errors that may pass are retried after a random wait that grows, until the file's deadline. These are refused and
dropped connections, 5xx, time-outs, short bodies, and downloads with the wrong sha256. A missing bucket, a refused
permission, an unknown protocol or a missing package is reported at once.

Each object is put whole, because object stores cannot rename. Object stores and the Hub show an object once its last
byte has arrived. On a local disk (`file://`) a temporary file is written and renamed. Some file systems (`sftp://`)
show a half-written file, so the caller must read back what it puts, as `storage.remote.sending.Sender` does.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from storage.disk.files import publishing
from storage.errors import ConfigError, TransferError
from storage.records.identity import FileRecord
from storage.remote.retrying import DEFAULT_POLICY, Patience, Result, RetryPolicy
from storage.remote.stores import FileSystem, open_store

# Size of one request, and the memory that one connection takes.
PIECE_BYTES = 8 << 20

# A scheme has two letters or more: one letter before a colon is a Windows drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_USER_INFO = re.compile(r"://[^/@]*@")

ProgressHook = Callable[[int], object]


def is_remote_url(text: str) -> bool:
    """Return whether `text` is a URL (`s3://…`, `file://…`) and not a path; `C:…` is a path."""
    return _URL.match(text) is not None


def require_local(*paths: Path) -> None:
    """Raise ConfigError if one of the paths is a URL; Path has turned its `//` into `/`."""
    for path in paths:
        if _URL_AS_PATH.match(str(path)):
            raise ConfigError(
                f"{path}: looks like a URL, expected a path on this machine; teachonce-cache pull and push copy caches"
            )


class RemoteDirectory:
    """A directory behind a URL. Several threads may use it at once.

    Credentials come from the environment, as each file system documents. Paths are relative and use `/`. Every method
    raises TransferError when an error is final or the file's deadline has passed.
    """

    def __init__(
        self,
        url: str,
        policy: RetryPolicy = DEFAULT_POLICY,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the URL.

        Raise ConfigError for a malformed URL, an unknown protocol or a missing package (MissingExtraError for S3).
        """
        self._policy, self._sleep, self._clock = policy, sleep, clock
        self.url = _USER_INFO.sub("://…@", url.rstrip("/"))
        if not is_remote_url(url) or not url.partition("://")[2].strip("/"):
            raise ConfigError(f"{self.url}: not a URL; expected protocol://bucket/path or protocol:///path")
        if re.match("(?:file|local)://(?!/)", url, re.IGNORECASE):
            raise ConfigError(f"{self.url}: names no path on this machine; expected file:///path, with three slashes")
        self._store = self._patience("").call(lambda: open_store(url, self.url))

    @property
    def puts_are_commits(self) -> bool:
        """Whether every put makes a commit. If so, put many files at once, so that they share a commit."""
        return self._store.puts_are_commits

    def num_bytes(self, path: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""
        return self._patience(path).call(lambda: self._store.num_bytes(path))

    def read_small(self, path: str, max_bytes: int) -> bytes | None:
        """Return the content of a file, None when there is no such file.

        Raise TransferError when it is larger than max_bytes.
        """
        patience = self._patience(path)

        def read() -> bytes | None:
            num_bytes = self._store.num_bytes(path)
            if num_bytes is None:
                return None
            if num_bytes > max_bytes:
                raise TransferError(self._named(path), f"is {num_bytes} bytes, more than the {max_bytes} allowed")
            return b"".join(self._pieces(path, num_bytes, patience))

        return patience.call(read)

    def download(
        self, path: str, destination: Path, num_bytes: int, sha256: str, progress: ProgressHook = lambda num_bytes: None
    ) -> None:
        """Download the first `num_bytes` of a file, check their sha256 and publish them as `destination`.

        The bytes are hashed while they stream to a temporary file. At most num_bytes are written. `progress` receives
        the number of bytes that are new; bytes that a retry fetches again do not count. When the sha256 is wrong, fetch
        again. Raise TransferError when the same wrong sha256 comes twice, WriteRefusedError when the write fails.
        """
        patience = self._patience(path)
        wrong: set[str] = set()

        def fetch() -> None:
            with publishing(destination) as file:
                for piece in self._pieces(path, num_bytes, patience):
                    file.write(piece)
                    progress(patience.reached(file.num_bytes))
                if file.sha256 != sha256:
                    problem = f"its bytes have sha256 {file.sha256[:16]}…, expected {sha256[:16]}…"
                    if file.sha256 in wrong:
                        raise TransferError(self._named(path), f"{problem}, twice: the copy there is damaged")
                    wrong.add(file.sha256)
                    raise OSError(problem)

        patience.call(fetch)

    def holds(self, path: str, num_bytes: int, sha256: str, progress: ProgressHook = lambda num_bytes: None) -> bool:
        """Return whether the file exists with this size and this sha256. If the size is right, read every byte."""
        if self.num_bytes(path) != num_bytes:
            return False
        try:
            return self.sha256_of(path, num_bytes, lambda piece: progress(len(piece))) == sha256
        except TransferError as error:
            if _says_missing(error):  # another process has just removed it
                return False
            raise

    def sha256_of(self, path: str, num_bytes: int, take: Callable[[bytes], object] = lambda piece: None) -> str:
        """Return the hex sha256 of the first `num_bytes` of a file; call `take` with each piece on the way."""
        patience = self._patience(path)
        digest = hashlib.sha256()
        num_read = 0
        for piece in self._pieces(path, num_bytes, patience):
            digest.update(piece)
            take(piece)
            num_read += len(piece)
            patience.reached(num_read)
        return digest.hexdigest()

    def names(self, directory: str) -> list[str] | None:
        """Return the names in a directory, none when there is no such directory; None when no listing is to be had."""
        return self._patience(directory).call(lambda: self._store.names(directory))

    def fetch(self, path: str, destination: Path) -> FileRecord | None:
        """Download a file of unknown content; return its size and sha256, None when there is no such file.

        The network may have damaged it: check it before use. Raise WriteRefusedError when the write fails.
        """
        patience = self._patience(path)
        num_bytes = patience.call(lambda: self._store.num_bytes(path))
        if num_bytes is None:
            return None
        try:
            with publishing(destination) as file:
                for piece in self._pieces(path, num_bytes, patience):
                    file.write(piece)
                    patience.reached(file.num_bytes)
        except TransferError as error:
            if _says_missing(error):
                return None
            raise
        return FileRecord(path=path, file_bytes=num_bytes, sha256=file.sha256)

    def put(self, local: Path, path: str) -> None:
        """Copy a local file to `path`; replace an existing file."""
        self.put_all([(local, path)])

    def put_all(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy local files to these paths, in this order; where every put is a commit, in one commit.

        Raise WriteRefusedError when the disk behind `file://` refuses a write.
        """
        groups = [files] if self.puts_are_commits else [[file] for file in files]
        for group in groups:
            self._patience(group[0][1]).call(functools.partial(self._store.put, group))

    @property
    def creates(self) -> bool:
        """Whether `create` leaves an existing file alone, as far as is known."""
        return self._files.creates

    def create(self, local: Path, path: str) -> bool:
        """Copy a local file to `path` unless there is a file; return False when there is one.

        Where `creates` is False, replace an existing file and return True. After a retry, False may also mean that the
        first attempt had arrived.
        """
        return self._patience(path).call(lambda: self._files.create(local, path))

    def find_out_whether_it_creates(self, local: Path, path: str) -> None:
        """Put a file that is there, with the bytes that are there. If that is not refused, set `creates` to False."""
        if self.creates and self.create(local, path):
            self._files.creates = False

    def remove(self, path: str) -> None:
        """Remove a file if there is one."""
        self._patience(path).call(lambda: self._files.remove(path))

    def version(self, path: str) -> str | None:
        """Return a text that changes when a file is replaced; None when there is no such file."""
        return self._patience(path).call(lambda: self._files.version(path))

    def retrying(self, path: str, action: Callable[[], Result]) -> Result:
        """Return the result of `action`; retry it after errors that may pass, until the deadline of the file `path`."""
        return self._patience(path).call(action)

    @property
    def _files(self) -> FileSystem:
        assert isinstance(self._store, FileSystem), "the Hub has commits instead"
        return self._store

    def _pieces(self, path: str, num_bytes: int, patience: Patience) -> Iterator[bytes]:
        for start in range(0, num_bytes, PIECE_BYTES):
            end = min(start + PIECE_BYTES, num_bytes)
            yield patience.call(functools.partial(self._read_exactly, path, start, end))

    def _read_exactly(self, path: str, start: int, end: int) -> bytes:
        piece = self._store.read(path, start, end)
        if len(piece) != end - start:
            raise OSError(f"{len(piece)} bytes came for the {end - start} from {start} on")
        return piece

    def _patience(self, path: str) -> Patience:
        return Patience(self._named(path), self._policy, self._sleep, self._clock)

    def _named(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url


def _says_missing(error: TransferError) -> bool:
    return isinstance(error.__cause__, FileNotFoundError)
