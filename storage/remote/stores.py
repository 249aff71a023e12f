"""The storage behind a URL: one of fsspec's file systems, or a dataset repository of the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import re
import shutil
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from storage.disk.files import publishing
from storage.errors import ConfigError, MissingExtraError, TransferError, first_line

# The file systems that put a file only where there is none, in one step at the server: S3 and Azure by the header
# If-None-Match (s3fs, adlfs), Google by ifGenerationMatch=0 (gcsfs). The others look first and put afterwards.
_CREATING_PROTOCOLS = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"))
_HUB_URL = re.compile(
    r"hf://datasets/(?P<repo_id>[^/@]+/[^/@]+)(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?(/(?P<root>.*))?"
)

_MISSING = (http.client.NOT_FOUND, http.client.GONE)


class Store(Protocol):
    """The operations of one kind of storage. They do not retry. Paths are relative to the URL."""

    puts_are_commits: bool

    def num_bytes(self, path: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""

    def names(self, directory: str) -> list[str] | None:
        """Return the names in a directory, none when there is no such directory; None when no listing is to be had."""

    def read(self, path: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of a file, fewer when it ends earlier."""

    def put(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy local files to these paths, in this order."""


def open_store(url: str, where: str) -> Store:
    """Open a URL, which errors call `where`.

    Raise ConfigError for a malformed URL, an unknown protocol or a missing package (MissingExtraError for S3).
    """
    if url.startswith("hf://"):
        return HubRepository(url, where)
    return FileSystem(url, where)


class FileSystem:
    """One of fsspec's file systems.

    fsspec's caches of instances and listings are off, because other writers would make them stale.

    creates: whether `create` leaves existing files alone. A server may turn out not to know such requests.
    """

    puts_are_commits = False

    def __init__(self, url: str, where: str) -> None:
        import fsspec.core
        from fsspec.implementations.local import LocalFileSystem

        try:
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            if url.startswith("s3://"):
                raise MissingExtraError(f"{where}: S3", "s3fs", "s3") from error
            raise ConfigError(f"{where}: cannot be opened: {first_line(error)}") from error
        except ValueError as error:  # unknown protocol
            raise ConfigError(f"{where}: cannot be opened: {first_line(error)}") from error
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)
        protocol = self._fs.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.creates = self._is_local or bool(protocols & _CREATING_PROTOCOLS)
        self._is_http = "http" in protocols

    def num_bytes(self, path: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""
        try:
            info = self._fs.info(self._full(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._is_http and getattr(error.__cause__, "status", None) not in _MISSING:
                raise (error.__cause__ or error) from None  # fsspec calls every failure a missing file
            return None
        if info["type"] == "directory":
            return None
        if info.get("size") is None:
            raise OSError("the server does not say how large it is")
        return int(info["size"])

    def names(self, directory: str) -> list[str] | None:
        """Return the names in a directory, none when there is no such directory; None over HTTP, which has no lists."""
        if self._is_http:
            return None
        place = self._full(directory).rstrip("/")
        try:
            paths = (path.rstrip("/") for path in self._fs.ls(place, detail=False))
            return [path.rpartition("/")[2] for path in paths if path != place]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of a file, fewer when it ends earlier."""
        content: bytes = self._fs.cat_file(self._full(path), start=start, end=end)
        return content

    def put(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy local files to these paths, in this order."""
        for local, path in files:
            if self._is_local:
                with local.open("rb") as source, publishing(Path(self._full(path))) as target:
                    shutil.copyfileobj(source, target)
            else:
                self._fs.put_file(str(local), self._full(path))

    def create(self, local: Path, path: str) -> bool:
        """Copy a local file to `path` unless there is a file; return False when there is one.

        Replace it and return True if the store has no such request.
        """
        if self._is_local:
            if Path(self._full(path)).exists():
                return False
            with local.open("rb") as source, publishing(Path(self._full(path)), "drop") as target:
                shutil.copyfileobj(source, target)
            return True
        if not self.creates:
            self.put([(local, path)])
            return True
        try:
            self._fs.put_file(str(local), self._full(path), mode="create")
        except OSError as error:
            if _says_exists(error):
                return False
            if error.errno != errno.ENOSYS:
                raise
            self.creates = False  # a server of S3's kind that answers "not implemented"
            return self.create(local, path)
        return True

    def remove(self, path: str) -> None:
        """Remove a file if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._full(path))

    def version(self, path: str) -> str | None:
        """Return a text that changes when a file is replaced; None when there is no such file."""
        try:
            return str(self._fs.ukey(self._full(path)))
        except FileNotFoundError:
            return None

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"


def _says_exists(error: OSError) -> bool:
    """Return whether a store refused to put a file because there is one.

    s3fs raises FileExistsError only for servers that name the condition in their answer, as Amazon's do.
    """
    answer = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412")


class HubRepository:
    """A dataset repository of the Hugging Face Hub, through the Hub's own client.

    The Hub's fsspec file system would make one commit for each file and take sizes from cached listings.
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
        """Return the size of a file in bytes, None when there is no such file."""
        try:
            with self._translated():
                num_bytes = self._api.get_hf_file_metadata(url=self._file_url(path)).size
        except FileNotFoundError:
            return None
        if num_bytes is None:
            raise OSError("the Hub does not say how large it is")
        return num_bytes

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, none when there is no such directory."""
        try:
            with self._translated():
                place = self._full(directory).rstrip("/") or None
                tree = self._api.list_repo_tree(self._repo_id, place, repo_type="dataset", revision=self._revision)
                return [entry.path.rpartition("/")[2] for entry in tree]
        except FileNotFoundError:
            return []

    def read(self, path: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of a file, fewer when it ends earlier."""
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
        # The server may ignore the range and send a small file whole.
        return content if response.status_code == http.client.PARTIAL_CONTENT else content[start:end]

    def put(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy local files to these paths in one commit."""
        from huggingface_hub import CommitOperationAdd

        additions = [CommitOperationAdd(self._full(path), local) for local, path in files]
        message = f"teachonce: {files[0][1]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        with self._translated():
            self._api.create_commit(
                self._repo_id, additions, commit_message=message, repo_type="dataset", revision=self._revision
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the Hub's errors into those that the other file systems raise, or into TransferError."""
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
        except json.JSONDecodeError as error:  # an error page instead of JSON
            raise OSError(f"not the Hub's answer: {first_line(error)}") from error
        except ValueError as error:  # the Hub refuses the request, for example a malformed dataset card
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
