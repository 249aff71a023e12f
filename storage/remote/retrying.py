"""Retry requests after network errors; raise all other errors at once.

tenacity would be a new dependency, and its deadlines run from the first attempt, even when bytes have arrived since.
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
# Libraries quote the URL, with its user name and password, in their errors.
_USER_INFO = re.compile(r"[^\s/@'\"]+:[^\s/@'\"]*@")
_LOGGER = logging.getLogger("teachonce")
_JITTER = random.Random()

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to retry, and how long to wait between attempts.

    `deadline_s` bounds the time without progress, so that a large file on a slow line is not given up. The clock of a
    file starts with its first failure and stops when new bytes of a download arrive. An attempt in progress is not
    interrupted; the time-outs of the libraries bound it. Each wait is uniform between 0 and a bound. The bound is
    first_wait_s after the first failure and doubles with each further one, up to longest_wait_s.
    """

    deadline_s: float = 600.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        if self.deadline_s < 0 or not 0 < self.first_wait_s <= self.longest_wait_s:
            raise ConfigError(f"{self}: the deadline must be at least 0, and 0 < first_wait_s <= longest_wait_s")


DEFAULT_POLICY = RetryPolicy()


class Patience:
    """Retry the requests for one file until its deadline."""

    def __init__(
        self, where: str, policy: RetryPolicy, sleep: Callable[[float], object], clock: Callable[[], float]
    ) -> None:
        self._where, self._policy, self._sleep, self._clock = where, policy, sleep, clock
        self._num_failures = 0
        self._first_failure_s = 0.0
        self._furthest = 0

    def call(self, action: Callable[[], Result]) -> Result:
        """Call `action` until it succeeds; return its result.

        Raise TransferError for an error that is final or when the deadline has passed. Errors of this project and
        programming errors are raised unchanged, at once.
        """
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
        """Return how many bytes are new when the file's first `num_bytes` have arrived; new bytes stop the clock."""
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


# The packages below fsspec raise their own error classes. None of the packages need be installed, so their errors are
# recognised by the package's name.
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
# Statuses from 400 to 499 that may pass: time-out (408), conflict (409), failed precondition (412), locked (423), too
# early (425), too many requests (429); and 400, which Google and S3 also send when a body broke off.
_PASSING_STATUSES = frozenset((400, 408, 409, 412, 423, 425, 429))
_NOT_IMPLEMENTED = 501


def _is_final(error: Exception) -> bool:
    """Return whether a retry cannot help."""
    names = {name.__name__ for name in type(error).__mro__}
    statuses = [getattr(getattr(error, "response", None), "status_code", None), getattr(error, "status", None)]
    if type(statuses[-1]) is not int:  # aiohttp warns of its errors' code, which is their status
        statuses.append(getattr(error, "code", None))
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
