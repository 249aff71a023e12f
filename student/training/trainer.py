"""Training a student from a cache alone. Killed anywhere and run again, a CPU run ends bit-identical."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from storage.disk.directory_lock import only_writer
from storage.errors import ConfigError
from storage.reading.cache import Cache
from storage.reading.row_stream import RowStream, StreamBatch, StreamState
from storage.shards.shard import check_file
from student.config import TrainConfig
from student.losses.targets import soft_target_settings
from student.model import choose_device, load_cache_tokenizer
from student.processes import Processes, joined_processes
from student.run_record import RUN_NAME
from student.training.checkpoint import (
    load_checkpoint,
    whole_model,
)
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
)
from student.training.run_log import RunLog
from student.training.stop_signals import stop_signals
from student.training.tensorboard_log import require_tensorboard


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
        cache = open_run_cache(config)
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
        run = run_facts(config, cache)
        is_finished = (config.out / RUN_NAME).is_file()
        if is_finished:
            require_same_run(config.out, run)
        else:
            require_own_directory(config.out)
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
            note_incomplete(config.out, cache)
            _note_unused_draws(config, cache, learner)
    with stop_signals() as stop:
        TrainingLoop(config, cache, learner, meter, run).run(first_step, streams, stop)
    model = whole_model(learner)
    with processes.together():
        if processes.is_first:
            save_student(model, tokenizer, cache, config, run)
    return config.out


def _require_processes(config: TrainConfig, processes: Processes) -> None:
    """Refuse what the number of processes does not allow."""
    if config.parallelism == "fsdp" and processes.world_size < 2:
        raise ConfigError("--parallelism fsdp: one process has no other to share with; start several by torchrun")


def _finish_again(config: TrainConfig) -> None:
    """What a finished run may lack: a run killed after its last file left its checkpoint."""
    clean_up(config.out)
    if config.tensorboard:  # of a run made without it too
        RunLog(config.out, config.max_steps, tensorboard=True).close()


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
