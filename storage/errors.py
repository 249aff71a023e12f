"""Every failure that a user can cause or meet, one class each.

```
TeachonceError
├── ConfigError                a setting that cannot be served
├── MissingExtraError          a package of an extra is not installed
├── WriteRefusedError          no room, or a write that the system refused
└── CacheError                 something about a cache on disk
    ├── NoCacheError           the path holds no cache
    ├── IncompleteCacheError   precompute has not finished
    ├── UnfinishedRemoteError  nor has whoever writes to a URL
    ├── CacheMismatchError     a rerun differs from what the cache was begun with
    ├── FormatVersionError     written by a newer teachonce
    ├── RecordError            plan, manifest or commit record is damaged or malformed
    ├── UnsafePathError        a path that would leave the cache directory
    ├── MissingFileError       a file that the manifest lists is not there
    ├── UnreadableFileError    a file that the system does not let us read
    ├── HashMismatchError      bytes differ from the recorded sha256
    ├── ShardFormatError       not the Arrow file that the schema promises
    ├── RowError               a row that breaks a rule of its kind
    ├── MissingKindError       the cache does not hold the rows asked for
    ├── ArchiveError           a packed cache that is damaged, or not one
    ├── MergeError             caches that do not belong together
    ├── TransferError          a copy over the network that failed for good
    └── LocalCacheTooSmallError  no room for the shards in use at once
```

`StoppedError` stands apart: it ends a thread whose work is no longer wanted, and no user sees it.
`pipeline.errors` and `student.errors` add their own branches under the same base. The commands
print such an error as one line and exit with 2; any other exception is a bug and keeps its
traceback.
"""

import errno
import os

_NO_ROOM = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class TeachonceError(Exception):
    """Base of every error that is the input's fault."""


class StoppedError(Exception):
    """Raised in a thread to end it, because another thread failed or the user stopped the run; nobody's fault."""


class ConfigError(TeachonceError):
    """A setting, or a combination of settings, that cannot be served."""


class MissingExtraError(TeachonceError):
    """`what` needs a package that comes with an extra and is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{what} needs {package}, which is not installed; "
            f"install it with: pip install -c constraints.txt -e .[{extra}]"
        )


class WriteRefusedError(TeachonceError):
    """The operating system refused a write: `path` could not be written."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: the write failed ({reason}); what was committed is safe: "
            f"{remedy_of(reason)} and run the same command again"
        )


class CacheError(TeachonceError):
    """Something about a cache on disk."""


class NoCacheError(CacheError):
    """The path holds no cache."""

    def __init__(self, path: str, reason: str = "no cache here") -> None:
        self.path = path
        super().__init__(
            f"{path}: {reason}; expected a directory with a manifest.json, which teachonce-precompute makes"
        )


class IncompleteCacheError(CacheError):
    """Precompute began this cache and has not finished it."""

    def __init__(self, path: str, committed: int, planned: int) -> None:
        self.path, self.committed, self.planned = path, committed, planned
        super().__init__(
            f"{path}: incomplete cache: {committed} of {planned} shards committed and no manifest.json; "
            "run the command that began it again to finish it"
        )


class UnfinishedRemoteError(CacheError):
    """Precompute or a push began the cache at this URL and has not finished it."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(
            f"{url}: incomplete cache: a plan.json and no manifest.json; run the command that began it again to finish "
            "it, for at a URL only a finished cache can be read"
        )


class CacheMismatchError(CacheError):
    """A rerun differs from what the cache was begun with, in `field`."""

    def __init__(self, path: str, field: str, found: object, wanted: object) -> None:
        self.path, self.field, self.found, self.wanted = path, field, found, wanted
        super().__init__(
            f"{path}: built with {field} = {found!r}, this run has {wanted!r}; "
            "use another place, or the settings that the cache was begun with"
        )


class FormatVersionError(CacheError):
    """Written by a newer teachonce than this one."""

    def __init__(self, path: str, found: object, supported: int) -> None:
        self.path, self.found, self.supported = path, found, supported
        super().__init__(f"{path}: format version {found!r}, this teachonce reads up to {supported}; upgrade teachonce")


class RecordError(CacheError):
    """plan.json, manifest.json or a commit record is damaged or malformed."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; restore the file, or delete it and run the command that made it again")


class UnsafePathError(CacheError):
    """A path inside a record that would leave the cache directory."""

    def __init__(self, path: str, where: str) -> None:
        self.path, self.where = path, where
        super().__init__(f"{where}: unsafe path {path!r}; do not trust this cache")


class MissingFileError(CacheError):
    """A file that the manifest lists is not there."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: listed in the manifest but missing; "
            "restore it, or run the command that made the cache again, which makes what is missing (unpack: elsewhere)"
        )


class UnreadableFileError(CacheError):
    """The operating system refused to read a file that is there."""

    def __init__(self, path: str, reason: str | None) -> None:
        self.path = path
        super().__init__(f"{path}: cannot be read ({reason}); make it readable, or restore it")


class HashMismatchError(CacheError):
    """Bytes on disk differ from the recorded size or sha256."""

    def __init__(self, path: str, found: str, expected: str) -> None:
        self.path, self.found, self.expected = path, found, expected
        super().__init__(
            f"{path}: damaged: found {found}, the record says {expected}; "
            "restore the file, or delete it and run the command that made the cache again (unpack: elsewhere)"
        )


class ShardFormatError(CacheError):
    """Not the Arrow file that the schema promises."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; the file was not written by teachonce for this cache")


class RowError(CacheError):
    """A row that breaks a rule of its kind."""

    def __init__(self, where: str, column: str, problem: str) -> None:
        self.where, self.column, self.problem = where, column, problem
        super().__init__(f"{where}: {column}: {problem}")


class MissingKindError(CacheError):
    """The cache does not hold the rows asked for."""

    def __init__(self, path: str, kind: str, split: str) -> None:
        self.path, self.kind, self.split = path, kind, split
        super().__init__(
            f"{path}: holds no {kind} rows in the {split} split; "
            f"ask for what it holds (teachonce-cache inspect), or precompute with --kinds {kind}"
        )


class ArchiveError(CacheError):
    """A packed cache that is damaged, or not a packed cache at all."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; pack the cache again, or fetch the file again")


class MergeError(CacheError):
    """Caches that do not belong together: `field` differs, or has to."""

    def __init__(self, path: str, field: str, found: object, wanted: object) -> None:
        self.path, self.field, self.found, self.wanted = path, field, found, wanted
        super().__init__(f"{path}: cannot be merged: {field} = {found!r}, expected {wanted!r}")


class TransferError(CacheError):
    """A copy to or from `url` that failed for good: not worth another try, or out of time."""

    def __init__(self, url: str, problem: str) -> None:
        self.url, self.problem = url, problem
        super().__init__(f"{url}: {problem}; what was copied is kept: run the same command again to go on")


class LocalCacheTooSmallError(CacheError):
    """The bounded local copy of a remote cache has no room for the shards that are in use at once."""

    def __init__(self, max_bytes: int, needed_bytes: int) -> None:
        self.max_bytes, self.needed_bytes = max_bytes, needed_bytes
        super().__init__(
            f"--local-cache-bytes is {max_bytes:,}, but the shards in use at once take {needed_bytes:,}; "
            "give at least that, twice as much to read ahead"
        )


def remedy_of(reason: str) -> str:
    """What to do about a refusal of the operating system, by its own words."""
    return "make room" if any(words in reason for words in _NO_ROOM) else "mend that"


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_unreadable_tokenizer(error: BaseException) -> bool:
    """Whether a library failed to load a tokenizer: it raises any Exception, or panics, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
