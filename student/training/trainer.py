"""Train a student from a cache alone. A CPU run that is killed anywhere and run again ends bit-identical."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from storage.disk.directory_lock import only_writer
from storage.errors import ConfigError
from storage.reading.cache import Cache
from storage.reading.row_stream import RowStream, StreamBatch, StreamState
from storage.shards.shard import check_file
from student.config import TrainConfig
from student.errors import ProcessMismatchError
from student.model.device import choose_device
from student.model.tokenizers import load_cache_tokenizer
from student.processes import Processes, joined_processes
from student.run_record import RUN_NAME
from student.training.checkpoint import load_checkpoint, whole_model
from student.training.learner import Learner, make_learner
from student.training.loop import TrainingLoop
from student.training.micro_batches import with_batch_blocks, with_remembered_micro_batches
from student.training.run_directory import (
    clean_up,
    note_incomplete,
    open_run_cache,
    require_own_directory,
    require_same_run,
    run_facts,
    save_student,
    with_begun_settings,
)
from student.training.run_log import RunLog
from student.training.stop_signals import stop_signals
from student.training.tensorboard_log import require_tensorboard


def train(config: TrainConfig) -> Path:
    """Train to the last step and return the directory of the finished student.

    When asked to stop, save a checkpoint and raise KeyboardInterrupt. Raises MissingExtraError before any other work,
    CacheError for a cache that cannot be used, StudentError for a student that does not fit it.
    """
    if config.tensorboard:
        require_tensorboard()
    with joined_processes() as processes:
        return _train(config, processes)


def _train(config: TrainConfig, processes: Processes) -> Path:
    _require_processes(config, processes)
    with processes.together():
        cache = open_run_cache(config)
    # Use the first process's shards: an incomplete cache may have more of them when another process opens it.
    cache = cache.restricted_to(processes.same([shard.path for shard in cache.manifest.shards]))
    with ExitStack() as stack:
        with processes.together():
            if processes.is_first:
                stack.enter_context(only_writer(config.out, "train"))
        return _train_on(cache, config, processes)


def _train_on(cache: Cache, config: TrainConfig, processes: Processes) -> Path:
    with processes.together():
        require_own_directory(config.out)
        config = with_begun_settings(with_batch_blocks(config, cache), cache)
        config = with_remembered_micro_batches(config, processes)
        run = run_facts(config, cache)
    _require_same_everywhere(run, processes)
    with processes.together():
        is_finished = (config.out / RUN_NAME).is_file()
        if is_finished:
            require_same_run(config.out, run)
        else:
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
        # Open the streams before writing anything, so that a cache that cannot be read leaves no files.
        streams = _open_streams(config, cache, learner, states) if first_step < config.max_steps else {}
        if processes.is_first:
            note_incomplete(config.out, cache)
            for remark in learner.remarks():
                print(remark, file=sys.stderr)
    with stop_signals() as stop:
        TrainingLoop(config, cache, learner, meter, run).run(first_step, streams, stop)
    trained = {} if config.lora.rank is None else {"num_trained_parameters": learner.num_trained_parameters}
    model = whole_model(learner)
    with processes.together():
        if processes.is_first:
            save_student(model, tokenizer, cache, config, run | trained)
    return config.out


def _require_processes(config: TrainConfig, processes: Processes) -> None:
    """Raise ConfigError for fsdp in a single process."""
    if config.parallelism == "fsdp" and processes.world_size < 2:
        raise ConfigError("--parallelism fsdp: one process has no other to share with; start several by torchrun")


def _require_same_everywhere(run: dict[str, Any], processes: Processes) -> None:
    """Raise ProcessMismatchError in a process whose facts are not the first's, as a file may differ between hosts."""
    first = processes.same(run)
    with processes.together():
        for field in run:
            if run[field] != first[field] and field != "preset":
                raise ProcessMismatchError(processes.rank, field, run[field], first[field])


def _finish_again(config: TrainConfig) -> None:
    """Remove the checkpoint that a kill after the last file left behind; write the event files if asked."""
    clean_up(config.out)
    if config.tensorboard:  # also for a run that was trained without it
        RunLog(config.out, config.max_steps, tensorboard=True).close()


def _open_streams(
    config: TrainConfig, cache: Cache, learner: Learner, states: dict[str, StreamState]
) -> dict[str, Iterator[StreamBatch]]:
    """Return streams of this process's rows, one batch per step, from `states` on. The first batch is read here."""
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
