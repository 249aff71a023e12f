"""Everything that users read caches with, in bounds of time and memory, and what must refuse which cache."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from scripts.faults.time_limit import time_limit
from storage import RowStream, open_cache, verify_cache
from storage.errors import TeachonceError
from storage.reading.inspection import render_head, render_summary, summarize
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS
from storage.shards.shard import Shard
from student import TrainConfig, train
from student.losses.batches import beam_batch, block_batch, sample_batch
from student.losses.targets import soft_target_settings
from tests.storage.reading.forging import Forgery

SECONDS = 120  # a hang, not a slow machine
# Python, torch and a student of a million parameters take about half of it.
MOST_BYTES = {"memory": 2 << 30, "Arrow": 512 << 20}
BIGGEST_INT = 2**70


Read = Callable[[Path], object]


def read_epochs(cache_dir: Path) -> None:
    """A little more than one epoch of every kind."""
    cache = open_cache(cache_dir)
    for kind in KINDS:
        stream = RowStream(cache, kind, "train", batch_rows=4, seed=0)
        batches = stream.batches()
        for _ in range(stream.num_rows // 4 + 2):
            next(batches)


def read_batches(cache_dir: Path) -> None:
    cache = open_cache(cache_dir)
    for kind in KINDS:
        for split in SPLITS:
            if cache.num_rows(kind, split):
                list(cache.record_batches(kind, split))


def print_summary(cache_dir: Path) -> None:
    summary = summarize(open_cache(cache_dir))
    json.dumps(summary, sort_keys=True).encode()
    assert render_summary(summary).replace("\n", "").isprintable()


def print_head(cache_dir: Path) -> None:
    for kind in KINDS:
        list(render_head(open_cache(cache_dir), kind, "train", 2))


def train_a_student(cache_dir: Path) -> None:
    out = cache_dir.parent / "student"
    sizes = {"batch_blocks": 4, "batch_samples": 4, "batch_beams": 2}
    train(TrainConfig(cache=cache_dir, out=out, preset="mini", max_steps=1, device="cpu", quiet=True, **sizes))


def make_tensors(cache_dir: Path) -> None:
    """Every row as the student's losses see it."""
    cache, device = open_cache(cache_dir), torch.device("cpu")
    settings = {"tail_weight": soft_target_settings(cache).tail_weight, "temperature": 1.0, "device": device}
    for kind, to_tensors in (
        ("soft_targets", lambda rows: block_batch(rows, **settings)),
        ("samples", lambda rows: sample_batch(rows, device)),
        ("beams", lambda rows: beam_batch(rows, device)),
    ):
        for rows in cache.record_batches(kind, "train"):
            to_tensors(rows)


READERS: dict[str, Read] = {
    "open": open_cache,
    "verify": verify_cache,
    "stream": read_epochs,
    "batches": read_batches,
    "inspect": print_summary,
    "head": print_head,
    "tensors": make_tensors,
    "train": train_a_student,
}
ALL = tuple(READERS)
ROWS = ("verify", "stream", "batches", "tensors")
FILES = ("verify", "train")


@dataclass(frozen=True)
class Case:
    """A hostile cache, the readers that must refuse it, and the class of their error."""

    forgery: Forgery
    error: type[TeachonceError]
    refused_by: tuple[str, ...] = ALL


def cases(
    error: type[TeachonceError], forgeries: dict[str, Forgery], refused_by: tuple[str, ...] = ALL
) -> dict[str, Case]:
    return {name: Case(forgery, error, refused_by) for name, forgery in forgeries.items()}


class Watch:
    """Notes what is opened or listed below a directory while it is on."""

    def __init__(self) -> None:
        self.directory: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.directory is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike) and "\0" not in os.fsdecode(path):
            real = os.path.realpath(os.fsdecode(path))
            if real.startswith(self.directory + os.sep):
                self.seen.append(real)

    @contextlib.contextmanager
    def on(self, directory: Path) -> Iterator[list[str]]:
        self.directory, self.seen = os.path.realpath(directory), []
        try:
            yield self.seen
        finally:
            self.directory = None


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail what hangs, or takes more memory than a cache of some kilobytes may."""
    before = peaks()
    with time_limit(SECONDS):
        yield
    for name, peak in peaks().items():
        assert peak <= max(before[name], MOST_BYTES[name]), f"{name} peaked at {peak} bytes"


def watched_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the place of each record batch that is checked, alone or with others."""
    checked: list[str] = []
    original = Shard._check_form

    def check_form(shard: Shard, batch: pa.RecordBatch, index: int) -> None:
        checked.append(shard._where(index))
        original(shard, batch, index)

    monkeypatch.setattr(Shard, "_check_form", check_form)
    return checked


def peaks() -> dict[str, int]:
    """The most bytes that this process ever held, all in all and for Arrow."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    return {"memory": resident, "Arrow": pa.default_memory_pool().max_memory()}


def errors_of(read: Read, cache_dir: Path) -> list[TeachonceError]:
    """Our errors, raised or returned; any other exception passes through."""
    try:
        return list(getattr(read(cache_dir), "problems", ()))
    except TeachonceError as error:
        return [error]
