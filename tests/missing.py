"""Say what this machine lacks, and which tests are skipped for it: python -m tests.missing.

`test.sh` runs this before the tests. What a test needs and skips for stands in the test itself; here is what a person
can add to a machine on which the extra dev is installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.browser import chromium
from tests.places import SHARED_DATA

_MINUTES = 10


@dataclass(frozen=True)
class Need:
    """Something that tests use and a machine may lack."""

    name: str
    is_here: Callable[[], bool]
    skipped: str
    remedy: str | None = None


def _has_packages(*names: str) -> Callable[[], bool]:
    return lambda: all(importlib.util.find_spec(name) is not None for name in names)


def _has_programs(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) is not None for name in names)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _can_separate() -> bool:
    return os.geteuid() == 0 and _has_programs("unshare", "nsenter", "ip")()


NEEDS = (
    Need("Chromium", lambda: chromium() is not None, "tests that open reports and the web page in a browser",
         "apt-get install chromium"),
    Need("Node's npm", _has_programs("npm"), "the student that writes in the browser", "apt-get install npm"),
    Need("tar and zstd", _has_programs("tar", "zstd"), "reading archives with other programs", "apt-get install zstd"),
    Need("root, unshare, nsenter and ip", _can_separate, "hosts in network spaces of their own (a Ray of two nodes)"),
    Need("a CUDA GPU", _has_gpu, "tests on a GPU"),
    Need("llama-cpp-python", _has_packages("llama_cpp"), "running GGUF files by llama.cpp (numpy still runs them)",
         "pip install -e .[llama], which compiles for minutes"),
    Need("lm-evaluation-harness", _has_packages("lm_eval"), "a student in the harness", "pip install lm_eval"),
    Need("real text and logits in shared/data beside the checkout", SHARED_DATA.is_dir, "trials on GPT-2's own logits"),
)  # fmt: skip


def lines() -> Iterator[str]:
    """One line per need that this machine does not meet, and how long the tests take."""
    for need in NEEDS:
        if not need.is_here():
            remedy = f" ({need.remedy})" if need.remedy else ""
            yield f"not here: {need.name}{remedy}; skipped for it: {need.skipped}"
    yield f"all tests take about {_MINUTES} minutes on two idle cores"


if __name__ == "__main__":
    print("\n".join(lines()), flush=True)
