"""Files below a URL: any file system that fsspec knows, or a dataset repository of the Hugging Face Hub.

Networks fail halfway. Whatever looks like that (refused and dropped connections, 5xx, time-outs, short bodies, bytes
that are not the recorded ones) is tried again after a random wait that grows, until the file's deadline; a missing
bucket, a refused permission, an unknown protocol or a missing package is reported at once.

Objects are put whole, for there is no renaming them: object stores and the Hub show an object once its last byte has
arrived, and on a local disk (`file://`) a temporary name is renamed. Some file systems (`sftp://`) show half a file,
so whoever puts must read back, as storage.transfer does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import http.client
import logging
import random
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from storage.errors import ConfigError, TeachonceError, TransferError, first_line
from storage.files import publishing

# What one request asks for, and the memory that one connection takes.
PIECE_BYTES = 8 << 20

_LOGGER = logging.getLogger("teachonce")
_JITTER = random.Random()
# One letter before the colon is a Windows drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HUB_URL = re.compile(
    r"hf://datasets/(?P<repo_id>[^/@]+/[^/@]+)(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?(/(?P<root>.*))?"
)
_USER_INFO = re.compile(r"://[^/@]*@")

Result = TypeVar("Result")
ProgressHook = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to go on trying.

    The clock of a file starts with its first failure and stops with every piece that arrives: `deadline_s` bounds the
    time without progress, so that a large file on a slow line is not given up. A try that is under way is not cut
    off; the time-outs of the libraries bound it. Waits are uniform between 0 and first_wait_s, doubled with each
    failure up to longest_wait_s.
    """

    deadline_s: float = 600.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        if self.deadline_s < 0 or not 0 < self.first_wait_s <= self.longest_wait_s:
            raise ConfigError(f"{self}: the deadline must be at least 0, and 0 < first_wait_s <= longest_wait_s")


DEFAULT_POLICY = RetryPolicy()


def is_remote_url(text: str) -> bool:
    """Whether `text` is a URL (`s3://…`, `file://…`) rather than a path, `C:…` included."""
    return _URL.match(text) is not None


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
        self._store = self._patience("").call(lambda: _open_store(url, self.url))

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
        new bytes. Raises DiskFullError when the write fails.
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
        """Copy files in this order, in one commit where puts are commits; DiskFullError when `file://` is full."""
        groups = [files] if self.puts_are_commits else [[file] for file in files]
        for group in groups:
            self._patience(group[0][1]).call(functools.partial(self._store.put, group))

    def retrying(self, path: str, action: Callable[[], Result]) -> Result:
        """Call `action` until it raises no OSError, as long as the policy allows for one file."""
        return self._patience(path).call(action)

    def _pieces(self, path: str, num_bytes: int, patience: _Patience) -> Iterator[bytes]:
        for start in range(0, num_bytes, PIECE_BYTES):
            end = min(start + PIECE_BYTES, num_bytes)
            yield patience.call(functools.partial(self._read_exactly, path, start, end))

    def _read_exactly(self, path: str, start: int, end: int) -> bytes:
        piece = self._store.read(path, start, end)
        if len(piece) != end - start:
            raise OSError(f"{len(piece)} bytes came for the {end - start} from {start} on")
        return piece

    def _patience(self, path: str) -> _Patience:
        return _Patience(self._named(path), self._policy, self._sleep, self._clock)

    def _named(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url


class _Patience:
    """The tries of one file, and when they end."""

    def __init__(
        self, where: str, policy: RetryPolicy, sleep: Callable[[float], object], clock: Callable[[], float]
    ) -> None:
        self._where, self._policy, self._sleep, self._clock = where, policy, sleep, clock
        self._num_failures = 0
        self._first_failure_s = 0.0
        self._furthest = 0

    def call(self, action: Callable[[], Result]) -> Result:
        """What `action` returns when it succeeds at last; a programming error passes at once."""
        while True:
            try:
                return action()
            except Exception as error:
                if isinstance(error, TeachonceError):
                    raise
                if _is_final(error):
                    raise TransferError(self._where, _explained(error)) from error
                if not _is_network(error):
                    raise
                self._wait(error)

    def reached(self, num_bytes: int) -> int:
        """How many of a file's bytes are new, now that its first num_bytes are here; new ones end a failure."""
        new_bytes = max(num_bytes - self._furthest, 0)
        if new_bytes:
            self._furthest, self._num_failures = num_bytes, 0
        return new_bytes

    def _wait(self, error: Exception) -> None:
        now = self._clock()
        if not self._num_failures:
            self._first_failure_s = now
        left = self._first_failure_s + self._policy.deadline_s - now
        if left <= 0:
            problem = f"gave up after {self._policy.deadline_s:g} s without progress, last {_explained(error)}"
            raise TransferError(self._where, problem) from error
        longest = min(self._policy.first_wait_s * 2.0 ** min(self._num_failures, 60), self._policy.longest_wait_s)
        wait_s = min(_JITTER.uniform(0, longest), left)
        self._num_failures += 1
        _LOGGER.warning("%s: %s; trying again in %.1f s", self._where, _explained(error), wait_s)
        self._sleep(wait_s)


# The packages beneath fsspec raise errors of their own, and none of them need be installed: they are known by name.
_NETWORK_PACKAGES = frozenset(
    [
        "adlfs",
        "aiobotocore",
        "aiohttp",
        "azure",
        "botocore",
        "gcsfs",
        "google",
        "h11",
        "hf_xet",
        "httpcore",
        "httpcore2",
        "httpx",
        "httpx2",
        "huggingface_hub",
        "paramiko",
        "requests",
        "s3fs",
        "urllib3",
    ]
)
_FINAL_NAMES = frozenset(
    [
        "ConfigParseError",
        "CredentialRetrievalError",
        "DefaultCredentialsError",
        "InvalidConfigError",
        "InvalidRegionError",
        "InvalidURL",
        "InvalidUrlClientError",
        "LocalTokenNotFoundError",
        "MissingDependencyException",
        "NoAuthTokenError",
        "NoCredentialsError",
        "NoRegionError",
        "OfflineModeIsEnabled",
        "ParamValidationError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOError",
        "SSOTokenLoadError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
        "UnsupportedProtocol",
    ]
)
_FINAL_OS_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_TIMEOUTS = (TimeoutError, asyncio.TimeoutError)
# Of the client's errors: time-out, conflict, failed precondition, locked, too early, too many requests; and 400,
# which Google and S3 also answer to a body that broke off.
_PASSING_STATUSES = frozenset((400, 408, 409, 412, 423, 425, 429))


def _is_final(error: Exception) -> bool:
    """Whether trying again is no use."""
    names = {name.__name__ for name in type(error).__mro__}
    response = getattr(error, "response", None)
    statuses = [getattr(response, "status_code", None), getattr(error, "status", None), getattr(error, "code", None)]
    is_refused = any(type(s) is int and 400 <= s < 500 and s not in _PASSING_STATUSES for s in statuses)
    return isinstance(error, _FINAL_OS_ERRORS) or (_is_network(error) and (is_refused or bool(names & _FINAL_NAMES)))


def _is_network(error: Exception) -> bool:
    packages = {parent.__module__.partition(".")[0] for parent in type(error).__mro__}
    plain = isinstance(error, (OSError, http.client.HTTPException, *_TIMEOUTS))
    return plain or bool(packages & _NETWORK_PACKAGES)


def _explained(error: Exception) -> str:
    said = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, PermissionError):
        return f"permission denied ({said}): check the credentials in the environment and what they allow"
    if isinstance(error, FileNotFoundError):
        return f"not found ({said}): check that the bucket or directory exists and holds the file"
    return said


class _Store(Protocol):
    """What a kind of storage does, without a second try; paths are relative to the URL."""

    puts_are_commits: bool

    def num_bytes(self, path: str) -> int | None: ...

    def read(self, path: str, start: int, end: int) -> bytes: ...

    def put(self, files: Sequence[tuple[Path, str]]) -> None: ...


def _open_store(url: str, where: str) -> _Store:
    """Open the URL; it is called `where` in errors."""
    if url.startswith("hf://"):
        return _HubRepository(url, where)
    return _FileSystem(url, where)


class _FileSystem:
    """Any of fsspec's file systems, without caches of instances or listings, which other writers would make stale."""

    puts_are_commits = False

    def __init__(self, url: str, where: str) -> None:
        import fsspec.core
        from fsspec.implementations.local import LocalFileSystem

        try:
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:  # the package behind the protocol is missing; no such protocol
            raise ConfigError(f"{where}: cannot be opened: {first_line(error)}") from error
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def num_bytes(self, path: str) -> int | None:
        try:
            info = self._fs.info(self._full(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if info["type"] == "directory":
            return None
        if info.get("size") is None:
            raise OSError("the server does not say how large it is")
        return int(info["size"])

    def read(self, path: str, start: int, end: int) -> bytes:
        content: bytes = self._fs.cat_file(self._full(path), start=start, end=end)
        return content

    def put(self, files: Sequence[tuple[Path, str]]) -> None:
        for local, path in files:
            if self._is_local:
                with local.open("rb") as source, publishing(Path(self._full(path))) as target:
                    shutil.copyfileobj(source, target)
            else:
                self._fs.put_file(str(local), self._full(path))

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"


class _HubRepository:
    """A dataset repository of the Hugging Face Hub, through the Hub's own client.

    Its fsspec file system would make a commit per file and answer sizes from listings that it keeps.
    """

    puts_are_commits = True

    def __init__(self, url: str, where: str) -> None:
        from huggingface_hub import HfApi

        matched = _HUB_URL.fullmatch(url.rstrip("/"))
        if matched is None:
            raise ConfigError(f"{where}: expected hf://datasets/OWNER/NAME[@REVISION][/PATH]")
        self._where, self._repo_id = where, matched["repo_id"]
        self._revision = urllib.parse.unquote(matched["revision"]) if matched["revision"] else None
        self._root = matched["root"] or ""
        self._api = HfApi()

    def num_bytes(self, path: str) -> int | None:
        try:
            with self._translated():
                num_bytes = self._api.get_hf_file_metadata(url=self._file_url(path)).size
        except FileNotFoundError:
            return None
        if num_bytes is None:
            raise OSError("the Hub does not say how large it is")
        return num_bytes

    def read(self, path: str, start: int, end: int) -> bytes:
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with self._translated():
            response = http_backoff(
                "GET", self._file_url(path), headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
            hf_raise_for_status(response)
        content: bytes = response.content
        # Small files may come whole, whatever range was asked for.
        return content if response.status_code == http.client.PARTIAL_CONTENT else content[start:end]

    def put(self, files: Sequence[tuple[Path, str]]) -> None:
        from huggingface_hub import CommitOperationAdd

        additions = [CommitOperationAdd(self._full(path), local) for local, path in files]
        message = f"teachonce: {files[0][1]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        with self._translated():
            self._api.create_commit(
                self._repo_id, additions, commit_message=message, repo_type="dataset", revision=self._revision
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """The Hub's answers as the errors that the other file systems raise."""
        from huggingface_hub import errors

        try:
            yield
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(first_line(error)) from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            problem = (
                f"no such dataset repository or revision, or not visible to you ({first_line(error)}): "
                "create it, or log in with `hf auth login`"
            )
            raise TransferError(self._where, problem) from error
        except ValueError as error:  # a request that the Hub refuses, such as a malformed dataset card
            raise TransferError(self._where, first_line(error)) from error

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".lstrip("/")

    def _file_url(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self._repo_id,
            self._full(path),
            repo_type="dataset",
            revision=self._revision,
            endpoint=self._api.endpoint,
        )
