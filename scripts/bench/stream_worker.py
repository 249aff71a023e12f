"""Read with one system in a separate process, so that systems do not share libraries, threads or memory.

    python -m scripts.bench.stream_worker SYSTEM DIRECTORY SCRATCH

The process answers requests, each a line of JSON on standard input, with a line of JSON on standard output.
"""

from __future__ import annotations

import gc
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from scripts.bench.stream_systems import SYSTEMS, Epochs, StreamSystem
from scripts.support.child import serve, stdout_for_answers
from scripts.support.measure import peak_bytes, reset_peak
from storage import open_cache
from storage.reading.proofs import notes_path
from storage.tensors.memory import keep_freed_memory
from student.losses.batches import BlockBatch


class Reader:
    """A reader of one system in one directory. Each method without an underscore answers a request."""

    def __init__(self, system: StreamSystem, directory: Path, scratch: Path) -> None:
        self._system, self._directory, self._scratch = system, directory, scratch
        self._epochs: Epochs = iter(())

    def write(self, cache: str) -> dict[str, Any]:
        """Store the rows of the cache at path `cache`."""
        self._system.write(self._directory, open_cache(cache))
        return {}

    def first_batch(self) -> dict[str, Any]:
        """Return the seconds from opening to the first batch."""
        started = self._open()
        next(next(self._epochs))
        return {"seconds": time.perf_counter() - started}

    def first_epoch(self) -> dict[str, Any]:
        """Open and read an epoch. Return its seconds (opening included), tokens and peak bytes."""
        return self._epoch(self._open())

    def known_epoch(self) -> dict[str, Any]:
        """Do the same over rows that an earlier epoch has read and so checked."""
        return self._epoch(self._open(forget=False))

    def later_epoch(self) -> dict[str, Any]:
        """Read the next epoch without reopening. Return its seconds, tokens and peak bytes."""
        return self._epoch(time.perf_counter())

    def contents(self) -> dict[str, Any]:
        """Read an epoch. Return the rows' first tokens in order, and sums that show whether each row came once."""
        self._open()
        batches = list(next(self._epochs))
        return {
            "sums": [sum(sums) for sums in zip(*map(_sums, batches), strict=True)],
            "first_tokens": torch.cat([batch.input_ids[:, 0] for batch in batches]).tolist(),
        }

    def _open(self, *, forget: bool = True) -> float:
        """Open as in a new process, except that modules are already imported. Return the time at which it began.

        forget: delete the notes of checked rows first.
        """
        self._epochs = iter(())
        gc.collect()
        if forget:
            notes_path().unlink(missing_ok=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        started = time.perf_counter()
        self._epochs = self._system.epochs(self._directory, self._scratch)
        return started

    def _epoch(self, started: float) -> dict[str, Any]:
        reset_peak()
        num_tokens = sum(batch.input_ids.numel() for batch in next(self._epochs))
        return {"seconds": time.perf_counter() - started, "num_tokens": num_tokens, "peak_bytes": peak_bytes()}


def _sums(batch: BlockBatch) -> Iterator[float]:
    targets = batch.targets
    for tensor in (batch.input_ids, batch.position_ids, batch.is_valid, targets.head_ids, targets.tail_ids):
        yield int(tensor.sum())
    assert batch.entropy is not None
    assert batch.label_logprob is not None
    for tensor in (targets.head_logprobs, targets.tail_logprob, batch.entropy, batch.label_logprob):
        yield float(tensor.double().sum())  # exact in any order, because the values are float16


def main() -> None:
    """Serve requests until standard input ends."""
    name, directory, scratch = sys.argv[1:]
    answers = stdout_for_answers()
    keep_freed_memory()  # as the trainer does
    reader = Reader(SYSTEMS[name], Path(directory), Path(scratch))
    serve(answers, lambda do, **arguments: getattr(reader, do)(**arguments))


if __name__ == "__main__":
    main()
