"""What running out of memory looks like, and what becomes of memory that is freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from storage.tensors.memory import is_out_of_memory


def test_the_host_s_refusal_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_failures_of_a_device_are_not_taken_for_it() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# Prints how many pages of 100 MB the system hands out anew when they are freed and allocated again and again.
_FAULTS = """
import resource, torch
from storage.tensors.memory import keep_freed_memory

keep_freed_memory()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(100 << 20, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _keeps_large_blocks() -> bool:
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)


@pytest.mark.skipif(not _keeps_large_blocks(), reason="needs glibc 2.35 or newer")
def test_a_large_block_that_was_freed_is_there_for_the_next() -> None:
    # In a process of its own: for a thread that was once refused memory, glibc does otherwise.
    child = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 100
