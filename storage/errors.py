"""One error class for each failure that a user can cause or meet.

```
TeachonceError
├── ConfigError                a setting that is not possible
├── NoBosTokenError            --bos always, and the tokenizer has no BOS token
├── EndBeyondVocabularyError   the tokenizer's end-of-text is an id that the model has no row for
├── MissingExtraError          a package of an extra is not installed
├── WriteRefusedError          the system refused a write, or has no room for it
├── UnusableModelError         the files of a model or tokenizer cannot be used
└── CacheError                 something is wrong with a cache
    ├── NoCacheError           the path holds no cache
    ├── IncompleteCacheError   precompute has not finished
    ├── UnfinishedRemoteError  precompute or a push to a URL has not finished
    ├── CacheMismatchError     a rerun has other settings than those the cache was begun with
    ├── FormatVersionError     written by a newer teachonce
    ├── RecordError            a plan, manifest or commit record is damaged or malformed
    ├── UnsafePathError        a path that leads out of the cache directory, or is not allowed in it
    ├── LinkTargetError        a symbolic link to something that is not read
    ├── LinkInTheWayError      a symbolic link where something is to be written
    ├── MissingFileError       a file that the manifest lists is missing
    ├── UnlistedFileError      a file that the manifest does not list
    ├── UnreadableFileError    the system or a store refuses to read a file
    ├── UncheckedFileError     the process that verified a file was killed
    ├── HashMismatchError      bytes differ from the recorded sha256
    ├── ShardFormatError       the file is not an Arrow file with the expected schema
    ├── RowError               a row breaks a rule of its kind
    ├── MissingKindError       the cache does not hold the rows asked for
    ├── ArchiveError           a file is not a packed cache, or is damaged
    ├── MergeError             caches cannot be merged
    ├── TransferError          a copy over the network failed, and is not tried again
    └── LocalCacheTooSmallError  the local copy has no room for the shards in use at once
```

`StoppedError` is not in this tree: it ends a thread whose work is no longer needed, and users never see it.
`pipeline.errors` and `student.errors` add their own branches under TeachonceError. The commands print a TeachonceError
as one line and exit with 2. Any other exception is a bug and keeps its traceback.
"""

import errno
import os

_NO_ROOM = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class TeachonceError(Exception):
    """Base of all errors that a user can cause or meet."""

    def __reduce__(self) -> tuple[object, ...]:
        # The arguments of __init__ are others than the message, which pickle would call it with.
        return type(self).__new__, (type(self), *self.args), vars(self)


class StoppedError(Exception):
    """Raised in a thread to end it because another thread failed or the user stopped the run."""


class ConfigError(TeachonceError):
    """A setting, or a combination of settings, that is not possible."""


class NoBosTokenError(TeachonceError):
    """--bos always needs a BOS token, and the tokenizer names none."""

    def __init__(self) -> None:
        super().__init__("--bos always: the tokenizer names no BOS token (bos_token); expected auto or never")


class EndBeyondVocabularyError(TeachonceError):
    """The tokenizer of the model at `path` names an end-of-text token for which the model has no row."""

    def __init__(self, path: str, token: str, token_id: int, vocab_size: int) -> None:
        self.path, self.token, self.token_id, self.vocab_size = path, token, token_id, vocab_size
        super().__init__(
            f"{path}: its tokenizer names {token!r}, id {token_id}, as the end of text, and the model has rows for ids "
            f"below {vocab_size}; name an eos_token in tokenizer_config.json that the model has a row for"
        )


class MissingExtraError(TeachonceError):
    """`what` needs `package`, which belongs to the extra `extra` and is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{what} needs {package}, which is not installed; "
            f"install it with: pip install -c constraints.txt -e .[{extra}]"
        )


class UnusableModelError(TeachonceError):
    """The files of a model or tokenizer cannot be used. Each side says whose they are: `reason` names no place."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class WriteRefusedError(TeachonceError):
    """The operating system refused to write `path`."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: the write failed ({reason}); what was committed is safe: "
            f"{remedy_of(reason)} and run the same command again"
        )


class CacheError(TeachonceError):
    """Base of all errors about a cache."""


class NoCacheError(CacheError):
    """The path holds no cache."""

    def __init__(self, path: str, reason: str = "no cache here") -> None:
        self.path = path
        super().__init__(
            f"{path}: {reason}; expected a directory with a manifest.json, which teachonce-precompute makes"
        )


class IncompleteCacheError(CacheError):
    """Precompute began the cache at `path` and has not finished it."""

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
    """A rerun has another value of `field` than the cache was begun with."""

    def __init__(self, path: str, field: str, found: object, wanted: object) -> None:
        self.path, self.field, self.found, self.wanted = path, field, found, wanted
        super().__init__(
            f"{path}: built with {field} = {found!r}, this run has {wanted!r}; "
            "use another place, or the settings that the cache was begun with"
        )


class FormatVersionError(CacheError):
    """A newer teachonce wrote the cache, in a format version that this one does not read."""

    def __init__(self, path: str, found: object, supported: int) -> None:
        self.path, self.found, self.supported = path, found, supported
        super().__init__(f"{path}: format version {found!r}, this teachonce reads up to {supported}; upgrade teachonce")


class RecordError(CacheError):
    """A record (plan.json, manifest.json or a commit record) is damaged or malformed."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; restore the file, or delete it and run the command that made it again")


class UnsafePathError(CacheError):
    """A path in a record or an archive might lead out of the cache directory, or is not allowed there."""

    def __init__(self, path: str, where: str) -> None:
        self.path, self.where = path, where
        super().__init__(f"{where}: unsafe path {path!r}; do not trust this cache")


class LinkTargetError(CacheError):
    """A path in a cache leads through a symbolic link to nothing, or to neither a directory nor a file with content."""

    def __init__(self, path: str, target: str) -> None:
        self.path, self.target = path, target
        super().__init__(
            f"{path}: a link to {target!r}, where there is no file with content; fetch that file (git annex get, dvc "
            "pull, or the command that laid the link), or put it here in place of the link"
        )


class LinkInTheWayError(CacheError):
    """A file of a cache would be written through a symbolic link, or in its place."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: a link, and only reading follows links inside a cache; to write, name a cache without them, such "
            "as a copy made with cp -rL (a link to the whole directory is allowed)"
        )


class MissingFileError(CacheError):
    """A file that the manifest lists is missing."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: listed in the manifest but missing; "
            "restore it, or run the command that made the cache again, which makes what is missing (unpack: elsewhere)"
        )


class UnlistedFileError(CacheError):
    """A file or directory stands in a finished cache, and its manifest does not list it."""

    def __init__(self, path: str) -> None:
        self.path = path
        name = path if path.isprintable() else repr(path)
        super().__init__(
            f"{name}: not in the manifest, and other readers may take it for part of the cache; move it out"
        )


class UnreadableFileError(CacheError):
    """The operating system, or the store at a URL, refused to read an existing file."""

    def __init__(self, path: str, reason: str | None) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: cannot be read ({reason}); make it readable, or restore it")


class UncheckedFileError(CacheError):
    """The process that verified the file at `path` ended on the way."""

    def __init__(self, path: str, how: str) -> None:
        self.path, self.how = path, how
        super().__init__(f"{path}: not verified: the process that did it ended ({how}); try again, with fewer --jobs")


class HashMismatchError(CacheError):
    """The size or sha256 of a file differs from the recorded one."""

    def __init__(self, path: str, found: str, expected: str) -> None:
        self.path, self.found, self.expected = path, found, expected
        super().__init__(
            f"{path}: damaged: found {found}, the record says {expected}; "
            "restore the file, or delete it and run the command that made the cache again (unpack: elsewhere)"
        )


class ShardFormatError(CacheError):
    """A file is not the Arrow file that the cache's schema and records promise."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; the file was not written by teachonce for this cache")


class RowError(CacheError):
    """A row breaks a rule of its kind."""

    def __init__(self, where: str, column: str, problem: str) -> None:
        self.where, self.column, self.problem = where, column, problem
        super().__init__(f"{where}: {column}: {problem}")


class MissingKindError(CacheError):
    """The cache holds no rows of this kind and split."""

    def __init__(self, path: str, kind: str, split: str) -> None:
        self.path, self.kind, self.split = path, kind, split
        super().__init__(
            f"{path}: holds no {kind} rows in the {split} split; "
            f"ask for what it holds (teachonce-cache inspect), or precompute with --kinds {kind}"
        )


class ArchiveError(CacheError):
    """A file is not a packed cache, or is a damaged one."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; pack the cache again, or fetch the file again")


class MergeError(CacheError):
    """Caches cannot be merged, because `field` of the one at `path` does not have the value that the merge needs."""

    def __init__(self, path: str, field: str, found: object, wanted: object) -> None:
        self.path, self.field, self.found, self.wanted = path, field, found, wanted
        super().__init__(f"{path}: cannot be merged: {field} = {found!r}, expected {wanted!r}")


class TransferError(CacheError):
    """A copy to or from `url` failed, and either a retry cannot help or the time for retries is over."""

    def __init__(self, url: str, problem: str) -> None:
        self.url, self.problem = url, problem
        super().__init__(f"{url}: {problem}; what was copied is kept: run the same command again to go on")


class LocalCacheTooSmallError(CacheError):
    """The size limit of the local copy of a remote cache is less than the shards in use at once need."""

    def __init__(self, max_bytes: int, needed_bytes: int) -> None:
        self.max_bytes, self.needed_bytes = max_bytes, needed_bytes
        super().__init__(
            f"--local-cache-bytes is {max_bytes:,}, but the shards in use at once take {needed_bytes:,}; "
            "give at least that, twice as much to read ahead"
        )


def remedy_of(reason: str) -> str:
    """Return what the user should do, given the system's reason for a refused write."""
    return "make room" if any(words in reason for words in _NO_ROOM) else "mend that"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that holds a reason, or its class name when the message is empty.

    A line that ends in a colon is a heading: the line after it belongs to the reason.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    count = next((i for i, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:count]).rstrip(":")
