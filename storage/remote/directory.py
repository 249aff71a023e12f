"""Files below a URL: any file system that fsspec knows, or a dataset repository of the Hugging Face Hub.

Networks fail halfway. Whatever looks like that (refused and dropped connections, 5xx, time-outs, short bodies, bytes
that are not the recorded ones) is tried again after a random wait that grows, until the file's deadline; a missing
bucket, a refused permission, an unknown protocol or a missing package is reported at once.

Objects are put whole, for there is no renaming them: object stores and the Hub show an object once its last byte has
arrived, and on a local disk (`file://`) a temporary name is renamed. Some file systems (`sftp://`) show half a file,
so whoever puts must read back, as storage.sharing.transfer does.
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
from storage.remote.retrying import DEFAULT_POLICY, Patience, Result, RetryPolicy
from storage.remote.stores import open_store

# What one request asks for, and the memory that one connection takes.
PIECE_BYTES = 8 << 20

# One letter before the colon is a Windows drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_USER_INFO = re.compile(r"://[^/@]*@")

ProgressHook = Callable[[int], object]


def is_remote_url(text: str) -> bool:
    """Whether `text` is a URL (`s3://…`, `file://…`) rather than a path, `C:…` included."""
    return _URL.match(text) is not None


def require_local(*paths: Path) -> None:
    """Raise ConfigError for a URL where only paths on this machine are taken; as a Path, it has one slash less."""
    for path in paths:
        if _URL_AS_PATH.match(str(path)):
            raise ConfigError(
                f"{path}: looks like a URL, expected a path on this machine; teachonce-cache pull and push copy caches"
            )


class RemoteDirectory:
    """A directory behind a URL; may be used from several threads.

    Credentials come from the environment, as each file system documents. Paths are relative, with `/`. Every method
    raises TransferError for what is final or has passed its deadline.
    """

    def __init__(
        self,
        url: str,
        policy: RetryPolicy = DEFAULT_POLICY,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError for a URL that cannot be served: an unknown protocol, or a package that is missing."""
        self._policy, self._sleep, self._clock = policy, sleep, clock
        self.url = _USER_INFO.sub("://…@", url.rstrip("/"))
        if not is_remote_url(url) or not url.partition("://")[2].strip("/"):
            raise ConfigError(f"{self.url}: not a URL; expected protocol://bucket/path or protocol:///path")
        if re.match("(?:file|local)://(?!/)", url, re.IGNORECASE):
            raise ConfigError(f"{self.url}: names no path on this machine; expected file:///path, with three slashes")
        self._store = self._patience("").call(lambda: open_store(url, self.url))

    @property
    def puts_are_commits(self) -> bool:
        """Whether every put makes a commit, so that many files should share one."""
        return self._store.puts_are_commits

    def num_bytes(self, path: str) -> int | None:
        """Size of a file, None when there is none."""
        return self._patience(path).call(lambda: self._store.num_bytes(path))

    def read_small(self, path: str, max_bytes: int) -> bytes | None:
        """Content of a file, None when there is none; TransferError when it is larger than max_bytes."""
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
        """Publish the file's first num_bytes as `destination` if that is their sha256.

        Hashed while they stream to a temporary name; never more than num_bytes are written. `progress` is told of
        new bytes. Raises WriteRefusedError when the write fails.
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
        """Whether the file is there with this size and, every byte read, this sha256."""
        patience = self._patience(path)
        if patience.call(lambda: self._store.num_bytes(path)) != num_bytes:
            return False
        digest = hashlib.sha256()
        for piece in self._pieces(path, num_bytes, patience):
            digest.update(piece)
            progress(len(piece))
        return digest.hexdigest() == sha256

    def put(self, local: Path, path: str) -> None:
        """Copy a local file to `path`, replacing what is there."""
        self.put_all([(local, path)])

    def put_all(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy files in this order, in one commit where puts are commits; WriteRefusedError when `file://` is full."""
        groups = [files] if self.puts_are_commits else [[file] for file in files]
        for group in groups:
            self._patience(group[0][1]).call(functools.partial(self._store.put, group))

    def retrying(self, path: str, action: Callable[[], Result]) -> Result:
        """Call `action` until it raises no OSError, as long as the policy allows for one file."""
        return self._patience(path).call(action)

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
