"""Trying again: what a network does wrong passes, everything else is final or a bug.

tenacity is no dependency, and its deadlines run from the first try, whatever has arrived since.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from storage.errors import ConfigError, TransferError

_LONGEST_REASON = 300
# Libraries quote the address that they were given.
_USER_INFO = re.compile(r"[^\s/@'\"]+:[^\s/@'\"]*@")
_LOGGER = logging.getLogger("teachonce")
_JITTER = random.Random()

Result = TypeVar("Result")


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


class Patience:
    """The tries of one file, and when they end."""

    def __init__(
        self, where: str, policy: RetryPolicy, sleep: Callable[[float], object], clock: Callable[[], float]
    ) -> None:
        self._where, self._policy, self._sleep, self._clock = where, policy, sleep, clock
        self._num_failures = 0
        self._first_failure_s = 0.0
        self._furthest = 0

    def call(self, action: Callable[[], Result]) -> Result:
        """What `action` returns when it succeeds at last; our own errors and programming errors pass at once."""
        while True:
            try:
                return action()
            except Exception as error:
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
# Of the client's errors: time-out, conflict, failed precondition, locked, too early, too many requests; and 400,
# which Google and S3 also answer to a body that broke off.
_PASSING_STATUSES = frozenset((400, 408, 409, 412, 423, 425, 429))
_NOT_IMPLEMENTED = 501


def _is_final(error: Exception) -> bool:
    """Whether trying again is no use."""
    names = {name.__name__ for name in type(error).__mro__}
    response = getattr(error, "response", None)
    statuses = [getattr(response, "status_code", None), getattr(error, "status", None), getattr(error, "code", None)]
    is_refused = any(
        type(s) is int and (s == _NOT_IMPLEMENTED or (400 <= s < 500 and s not in _PASSING_STATUSES)) for s in statuses
    )
    return isinstance(error, _FINAL_OS_ERRORS) or (_is_network(error) and (is_refused or bool(names & _FINAL_NAMES)))


def _is_network(error: Exception) -> bool:
    packages = {parent.__module__.partition(".")[0] for parent in type(error).__mro__}
    plain = isinstance(error, (OSError, http.client.HTTPException, asyncio.TimeoutError))
    return plain or bool(packages & _NETWORK_PACKAGES)


def _explained(error: Exception) -> str:
    text = _USER_INFO.sub("…@", " ".join(str(error).split()))
    said = f"{type(error).__name__}: {text[:_LONGEST_REASON]}".removesuffix(": ")
    if isinstance(error, PermissionError):
        return f"permission denied ({said}): check the credentials in the environment and what they allow"
    if isinstance(error, FileNotFoundError):
        return f"not found ({said}): check that the bucket or directory exists and holds the file"
    return said
