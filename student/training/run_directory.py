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
from storage.disk.files import TEMPORARY_PREFIX, may_replace, refusals
from storage.errors import ConfigError, RecordError
from storage.reading.cache import Cache, open_cache
from storage.records.records import read_record, write_record
from storage.text.ends import as_stated
from student.config import TrainConfig
from student.errors import CheckpointError, ForeignFileError
from student.losses.parts.beams import BeamsPart
from student.run_record import BEGINNING, RUN_NAME, preset_facts, read_run, require_same_facts, stated_mix
from student.training.checkpoint import CHECKPOINT_NAME, SHARDED_PREFIX, begun_run, is_sharded, remove_checkpoint
from student.training.micro_batches import MICRO_BATCHES_NAME
from student.training.objective import has_targets
from student.training.run_log import LINE_BEGINNING, METRICS_NAME
from student.training.tensorboard_log import TENSORBOARD_NAME

_SHARDS_NAME = "shards.json"
_FILES = (METRICS_NAME, CHECKPOINT_NAME, _SHARDS_NAME, MICRO_BATCHES_NAME, RUN_NAME)
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
    if not begun.is_file():
        return cache
    shards = read_record(begun).get("shards")
    if not isinstance(shards, list) or not all(isinstance(shard, str) for shard in shards):
        raise RecordError(str(begun), "states no shards")
    return cache.restricted_to(shards)


def note_incomplete(out: Path, cache: Cache) -> None:
    """Print how many shards of an incomplete cache are used, and write their paths for runs that resume."""
    num_shards, num_planned = len(cache.manifest.shards), cache.identity.num_planned_shards
    if num_shards < num_planned:
        print(f"{cache.path}: training on {num_shards} of {num_planned} shards, in every resume too", file=sys.stderr)
        write_record(out / _SHARDS_NAME, {"shards": [shard.path for shard in cache.manifest.shards]})


def with_begun_settings(config: TrainConfig, cache: Cache) -> TrainConfig:
    """Return the settings of a run that goes on as it began, raise CheckpointError when its record is damaged.

    Earlier versions had no --dropout, and took what the student's config says: None. They gave candidates another
    weight, and did not state it. No flag has to be given for either.
    """
    begun = begun_run(config.out)
    if begun and begun.get("dropout") is None and config.dropout == 0.0:
        config = dataclasses.replace(config, dropout=None)
    if config.mix.beams is not None or not has_targets(cache, BeamsPart.kind):
        return config
    weight = stated_mix(begun).get("beams", BeamsPart.default_weight)
    return dataclasses.replace(config, mix=dataclasses.replace(config.mix, beams=weight))


def run_facts(config: TrainConfig, cache: Cache) -> dict[str, Any]:
    """Return the facts that decide a run's weights, as JSON values: its settings and the hashes of what it reads.

    Raise UnknownPresetError for a config that cannot be read.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE_FIELDS}
    if config.lora.rank is None:
        settings["lora"] = None  # as in runs of earlier versions, which do not state it
    facts = {"cache_sha256": cache.rows_sha256, **settings, **preset_facts(config.preset)}
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def require_own_directory(out: Path) -> None:
    """Raise ForeignFileError or ConfigError when `out` holds what is not a run's and would be in its way or be lost."""
    for name in _FILES:
        if (out / name).exists() and not (out / name).is_file():
            raise ForeignFileError(str(out / name), "not a file")
    if (out / TENSORBOARD_NAME).exists() and not (out / TENSORBOARD_NAME).is_dir():
        raise ForeignFileError(str(out / TENSORBOARD_NAME), "not a directory")
    if (out / CHECKPOINT_NAME).is_file() or (out / RUN_NAME).is_file() or not out.is_dir():
        return
    strangers = sorted(path.name for path in out.iterdir() if not _is_ours(path))
    if strangers:
        raise ConfigError(f"--out {out}: not empty and not a run (found {strangers[0]!r}); name another directory")
    if not may_replace(out / METRICS_NAME, LINE_BEGINNING):
        raise ForeignFileError(str(out / METRICS_NAME), "not the log of a run")


def _is_ours(path: Path) -> bool:
    """Whether a file or directory may be what a run left that has no checkpoint yet."""
    if path.name.startswith(SHARDED_PREFIX):
        return is_sharded(path)
    return path.name in (*_FILES, TENSORBOARD_NAME) or path.name.startswith(TEMPORARY_PREFIX)


def require_same_run(out: Path, run: dict[str, Any]) -> None:
    """Raise as require_same_facts does for the finished run in `out`, CheckpointError when its run.json is damaged."""
    begun = read_run(out)
    if "cache_sha256" not in begun:
        raise CheckpointError(str(out / RUN_NAME), "it does not state a run")
    require_same_facts(out, {field: begun.get(field) for field in run}, run)


def save_student(model: Any, tokenizer: Any, cache: Cache, config: TrainConfig, run: dict[str, Any]) -> None:
    """Publish the student as a save_pretrained directory with its tokenizer.

    run.json is renamed into place last and marks the student as finished. It states how texts begin; the generation
    config states where they end.
    """
    if cache.identity.end_ids:
        model.generation_config.eos_token_id = as_stated(cache.identity.end_ids)
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
    beginning = {BEGINNING: list(cache.identity.beginning_ids)}
    facts = run | beginning | {"teacher": cache.identity.teacher, "length_penalty": length_penalty}
    with refusals(staging / RUN_NAME):
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
