"""Training a student from a cache alone. Killed anywhere and run again, a CPU run ends bit-identical."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from storage.disk.directories import give_usual_modes, remove_leftovers
from storage.disk.directory_lock import only_writer
from storage.disk.files import TEMPORARY_PREFIX, refusals
from storage.errors import ConfigError
from storage.progress import Progress
from storage.reading.cache import Cache, open_cache
from storage.reading.row_stream import RowStream, StreamBatch, StreamState
from storage.records.records import read_record, write_record
from storage.shards.shard import check_file
from student.config import TrainConfig
from student.errors import DivergedError, RunMismatchError
from student.evaluation import evaluate_model
from student.losses.targets import soft_target_settings
from student.model import choose_device, load_cache_tokenizer
from student.processes import Processes, joined_processes
from student.run_record import RUN_NAME, read_run
from student.training.checkpoint import (
    CHECKPOINT_NAME,
    SHARDED_PREFIX,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
    whole_model,
)
from student.training.learner import Learner, make_learner
from student.training.meter import Meter
from student.training.micro_batches import MICRO_BATCHES_NAME, with_batch_blocks, with_remembered_micro_batches
from student.training.run_log import METRICS_NAME, NoLog, RunLog
from student.training.schedule import learning_rate
from student.training.tensorboard_log import TENSORBOARD_NAME, require_tensorboard

_SHARDS_NAME = "shards.json"
_LOG_EVERY = 10
_EVALUATION_BLOCKS = 128
# Fields that may change between a run and the one that resumes it.
_FREE_FIELDS = (
    "cache", "out", "device", "evaluate_every", "checkpoint_every", "quiet", "micro_batches",
    "tensorboard", "allow_incomplete", "local_cache_dir", "local_cache_bytes", "parallelism",
    "gradient_checkpointing",
)  # fmt: skip


def train(config: TrainConfig) -> Path:
    """Train to the last step and return the directory of the finished student.

    Raises MissingExtraError before anything is done, CacheError for a cache that cannot be used, StudentError for a
    student that does not fit it, KeyboardInterrupt after saving a checkpoint when asked to stop.
    """
    if config.tensorboard:
        require_tensorboard()
    with joined_processes() as processes:
        return _train(config, processes)


def _train(config: TrainConfig, processes: Processes) -> Path:
    _require_processes(config, processes)
    with processes.together():
        cache = _open_cache(config)
    # More may be committed of an incomplete cache when another process looks.
    cache = cache.restricted_to(processes.same([shard.path for shard in cache.manifest.shards]))
    with ExitStack() as stack:
        with processes.together():
            if processes.is_first:
                stack.enter_context(only_writer(config.out, "train"))
        return _train_on(cache, config, processes)


def _train_on(cache: Cache, config: TrainConfig, processes: Processes) -> Path:
    with processes.together():
        config = with_remembered_micro_batches(with_batch_blocks(config, cache), processes)
        run = _run_facts(config, cache)
        is_finished = (config.out / RUN_NAME).is_file()
        if is_finished:
            _require_same_run(config.out, run)
        else:
            _require_own_directory(config.out)
            for file in cache.manifest.files:
                check_file(cache.path, file)
            tokenizer = load_cache_tokenizer(cache)
            learner = make_learner(config, cache, choose_device(config.device), processes)
    if is_finished:
        if processes.is_first:
            _finish_again(config)
        return config.out
    with processes.together():
        first_step, states, meter = load_checkpoint(config.out, learner=learner, run=run)
        # Before anything is written: of a cache that cannot be read, nothing is left.
        streams = _open_streams(config, cache, learner, states) if first_step < config.max_steps else {}
        if processes.is_first:
            _note_incomplete(config.out, cache)
            _note_unused_draws(config, cache, learner)
    with _stop_signals() as stop:
        _Loop(config, cache, learner, meter, run).run(first_step, streams, stop)
    model = whole_model(learner)
    with processes.together():
        if processes.is_first:
            _save_student(model, tokenizer, cache, config, run)
    return config.out


def _require_processes(config: TrainConfig, processes: Processes) -> None:
    """Refuse what the number of processes does not allow."""
    if config.parallelism == "fsdp" and processes.world_size < 2:
        raise ConfigError("--parallelism fsdp: one process has no other to share with; start several by torchrun")


def _finish_again(config: TrainConfig) -> None:
    """What a finished run may lack: a run killed after its last file left its checkpoint."""
    _clean_up(config.out)
    if config.tensorboard:  # of a run made without it too
        RunLog(config.out, config.max_steps, tensorboard=True).close()


def _open_cache(config: TrainConfig) -> Cache:
    """The cache; for a run begun on an incomplete one, with the shards that there were."""
    cache = open_cache(config.cache, allow_incomplete=config.allow_incomplete, local_copy=config.local_copy)
    begun = config.out / _SHARDS_NAME
    return cache.restricted_to(read_record(begun)["shards"]) if begun.is_file() else cache


def _note_incomplete(out: Path, cache: Cache) -> None:
    """Say how much of an incomplete cache is used, and remember it for runs that resume."""
    num_shards, num_planned = len(cache.manifest.shards), cache.identity.num_planned_shards
    if num_shards < num_planned:
        print(f"{cache.path}: training on {num_shards} of {num_planned} shards, in every resume too", file=sys.stderr)
        write_record(out / _SHARDS_NAME, {"shards": [shard.path for shard in cache.manifest.shards]})


def _note_unused_draws(config: TrainConfig, cache: Cache, learner: Learner) -> None:
    """Say when forward KL sees the sampled tail as one mass, for it was drawn at another temperature."""
    head_loss = learner.objective.head_loss
    if not head_loss.soft_weight or head_loss.unbiased or head_loss.divergence != "forward_kl":
        return
    settings = soft_target_settings(cache)
    if settings.tail_weight is not None:
        drawn_at = settings.temperatures[0]
        print(
            f"{cache.where}: the tail was drawn at temperature {drawn_at:g} and counts as one mass at "
            f"--temperature {config.temperature:g}",
            file=sys.stderr,
        )


def _open_streams(
    config: TrainConfig, cache: Cache, learner: Learner, states: dict[str, StreamState]
) -> dict[str, Iterator[StreamBatch]]:
    """This process's rows of each kind, step by step from `states` on; the first are read already."""
    processes = learner.parallel.processes
    streams = {
        kind: RowStream(
            cache,
            kind,
            "train",
            batch_rows=batch_rows,
            seed=config.seed,
            rank=processes.rank,
            world_size=processes.world_size,
        ).batches(states.get(kind))
        for kind, batch_rows in learner.objective.batch_rows().items()
    }
    return {kind: itertools.chain([next(stream)], stream) for kind, stream in streams.items()}


class _Loop:
    def __init__(self, config: TrainConfig, cache: Cache, learner: Learner, meter: Meter, run: dict[str, Any]) -> None:
        self._config, self._cache, self._learner, self._meter, self._run = config, cache, learner, meter, run
        self._processes = learner.parallel.processes

    def run(self, first_step: int, streams: dict[str, Iterator[StreamBatch]], stop: list[int]) -> None:
        """Steps first_step … max_steps − 1, with logs, evaluations and checkpoints."""
        config, processes = self._config, self._processes
        is_quiet = config.quiet or not processes.is_first
        with closing(self._open_log(first_step)) as log:
            with Progress(config.max_steps, "train", "steps", quiet=is_quiet, initial=first_step) as bar:
                for step in range(first_step, config.max_steps):
                    batches = {kind: next(stream) for kind, stream in streams.items()}
                    rows = {kind: batch.rows for kind, batch in batches.items()}
                    self._meter.add_step(*self._learner.step(step, rows))
                    states = {kind: batch.next_state for kind, batch in batches.items()}
                    done = step + 1
                    logs = done % _LOG_EVERY == 0 or done == config.max_steps
                    bar.update(1, **(self._log_steps(log, done) if logs else {}))
                    if done % config.evaluate_every == 0 and done < config.max_steps:
                        self._log_validation(log, done)
                    is_stopping = processes.any(bool(stop))
                    if done % config.checkpoint_every == 0 or is_stopping or done == config.max_steps:
                        self._checkpoint(done, states)
                    if is_stopping and done < config.max_steps:
                        raise KeyboardInterrupt
            if processes.any(not log.has_validation(config.max_steps)):  # a run killed after its last step resumes here
                self._log_validation(log, config.max_steps)

    def _open_log(self, first_step: int) -> RunLog | NoLog:
        if not self._processes.is_first:
            return NoLog()
        return RunLog(self._config.out, first_step, tensorboard=self._config.tensorboard)

    def _log_steps(self, log: RunLog | NoLog, done: int) -> dict[str, str]:
        """Add a line about the steps since the last one; returns what the progress bar shows of it."""
        found = self._meter.read()
        self._require(done, _are_finite(found))
        log.write(done, **found, learning_rate=learning_rate(done - 1, self._config), **self._meter.totals())
        rate = found.pop("tokens_per_second")
        return {name: f"{value:.3f}" for name, value in found.items()} | {"tok/s": f"{rate:,.0f}"}

    def _log_validation(self, log: RunLog | NoLog, done: int) -> None:
        """Every process measures the same, for a student in parts needs all of them."""
        parallel = self._learner.parallel
        parallel.model.eval()
        found = parallel.measure(lambda: evaluate_model(parallel.model, self._cache, max_blocks=_EVALUATION_BLOCKS))
        parallel.model.train()
        self._require(done, _are_finite(found))
        log.write(done, validation=found, **self._meter.totals())

    def _checkpoint(self, step: int, states: dict[str, StreamState]) -> None:
        self._require(step, self._meter.is_finite())
        save_checkpoint(
            self._config.out, step=step, learner=self._learner, streams=states, meter=self._meter, run=self._run
        )

    def _require(self, done: int, is_finite: bool) -> None:
        """Raise DivergedError, before more is kept, unless the figures of all processes are finite."""
        with self._processes.together():
            if not is_finite:
                raise DivergedError(str(self._config.out), done, self._config.learning_rate)


def _are_finite(figures: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for value in figures.values() if value is not None)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when the run is asked to stop (Ctrl-C, SIGTERM); a second Ctrl-C stops at once."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs this thread handles signals
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_facts(config: TrainConfig, cache: Cache) -> dict[str, Any]:
    """What decides the weights of a run: its settings, and the rows it reads."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE_FIELDS}
    facts = {
        "cache_sha256": cache.rows_sha256,
        **settings,
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _require_own_directory(out: Path) -> None:
    """Refuse to write a student over something else."""
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


def _require_same_run(out: Path, run: dict[str, Any]) -> None:
    begun = read_run(out)
    for field in run:
        if begun.get(field) != run[field]:
            raise RunMismatchError(str(out), field, begun.get(field), run[field])


def _save_student(model: Any, tokenizer: Any, cache: Cache, config: TrainConfig, run: dict[str, Any]) -> None:
    """Publish a save_pretrained directory with the tokenizer; run.json comes last and marks it finished."""
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
    _clean_up(config.out)


def _clean_up(out: Path) -> None:
    remove_leftovers(out)
    (out / MICRO_BATCHES_NAME).unlink(missing_ok=True)
    remove_checkpoint(out)
