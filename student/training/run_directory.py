"""A run's directory: whether a run may use it, the facts that the run started with, and the finished student."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from storage.disk.directories import give_usual_modes, remove_leftovers
from storage.disk.files import TEMPORARY_PREFIX, refusals
from storage.errors import ConfigError
from storage.reading.cache import Cache, open_cache
from storage.records.records import read_record, write_record
from student.config import TrainConfig
from student.errors import RunMismatchError
from student.run_record import RUN_NAME, read_run
from student.training.checkpoint import CHECKPOINT_NAME, SHARDED_PREFIX, remove_checkpoint
from student.training.micro_batches import MICRO_BATCHES_NAME
from student.training.run_log import METRICS_NAME
from student.training.tensorboard_log import TENSORBOARD_NAME

_SHARDS_NAME = "shards.json"
# Fields that may change between a run and the one that resumes it.
_FREE_FIELDS = (
    "cache", "out", "device", "evaluate_every", "checkpoint_every", "quiet", "micro_batches",
    "tensorboard", "allow_incomplete", "local_cache_dir", "local_cache_bytes", "parallelism",
    "gradient_checkpointing",
)  # fmt: skip


def open_run_cache(config: TrainConfig) -> Cache:
    """Open the cache. For a run that started on an incomplete cache, keep to the shards of that start."""
    cache = open_cache(config.cache, allow_incomplete=config.allow_incomplete, local_copy=config.local_copy)
    begun = config.out / _SHARDS_NAME
    return cache.restricted_to(read_record(begun)["shards"]) if begun.is_file() else cache


def note_incomplete(out: Path, cache: Cache) -> None:
    """Print how many shards of an incomplete cache are used, and write their paths for runs that resume."""
    num_shards, num_planned = len(cache.manifest.shards), cache.identity.num_planned_shards
    if num_shards < num_planned:
        print(f"{cache.path}: training on {num_shards} of {num_planned} shards, in every resume too", file=sys.stderr)
        write_record(out / _SHARDS_NAME, {"shards": [shard.path for shard in cache.manifest.shards]})


def run_facts(config: TrainConfig, cache: Cache) -> dict[str, Any]:
    """Return the facts that decide a run's weights, as JSON values: its settings and the hash of the rows it reads."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE_FIELDS}
    facts = {
        "cache_sha256": cache.rows_sha256,
        **settings,
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def require_own_directory(out: Path) -> None:
    """Raise ConfigError when `out` has files that are not a run's, and no checkpoint."""
    ours = (
        TEMPORARY_PREFIX,
        METRICS_NAME,
        TENSORBOARD_NAME,
        CHECKPOINT_NAME,
        SHARDED_PREFIX,
        _SHARDS_NAME,
        MICRO_BATCHES_NAME,
    )
    strangers = [path.name for path in out.iterdir() if not path.name.startswith(ours)] if out.is_dir() else []
    if strangers and not (out / CHECKPOINT_NAME).is_file():
        raise ConfigError(f"--out {out}: not empty and not a run (found {strangers[0]!r}); name another directory")


def require_same_run(out: Path, run: dict[str, Any]) -> None:
    """Raise RunMismatchError when the finished run in `out` differs from `run`."""
    begun = read_run(out)
    for field in run:
        if begun.get(field) != run[field]:
            raise RunMismatchError(str(out), field, begun.get(field), run[field])


def save_student(model: Any, tokenizer: Any, cache: Cache, config: TrainConfig, run: dict[str, Any]) -> None:
    """Publish the student as a save_pretrained directory with its tokenizer.

    run.json is renamed into place last and marks the student as finished.
    """
    staging = config.out / f"{TEMPORARY_PREFIX}student"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with refusals(staging):
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            give_usual_modes(staging)
    except Exception:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    length_penalty = cache.identity.config.get("beams", {}).get("length_penalty")
    facts = run | {"teacher": cache.identity.teacher, "length_penalty": length_penalty}
    (staging / RUN_NAME).write_text(json.dumps(facts, indent=1, sort_keys=True))
    names = sorted(path.name for path in staging.iterdir())
    for name in names:
        with refusals(staging / name), (staging / name).open("rb") as file:
            os.fsync(file.fileno())
    for name in itertools.chain((n for n in names if n != RUN_NAME), [RUN_NAME]):
        with refusals(config.out / name):
            (staging / name).replace(config.out / name)
    clean_up(config.out)


def clean_up(out: Path) -> None:
    """Remove the files that a finished run no longer needs, as far as the system allows it."""
    with contextlib.suppress(OSError):  # a read-only disk refuses to remove even a file that is not there
        remove_leftovers(out)
        (out / MICRO_BATCHES_NAME).unlink(missing_ok=True)
        remove_checkpoint(out)
