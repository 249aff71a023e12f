"""The steps of a run: train, save, log, validate. What may fail comes after the checkpoint of the same step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from storage.progress import Progress
from storage.reading.cache import Cache
from storage.reading.row_stream import StreamBatch, StreamState
from student.config import TrainConfig
from student.errors import DivergedError
from student.evaluation import evaluate_model
from student.training.checkpoint import save_checkpoint
from student.training.learner import Learner
from student.training.meter import Meter
from student.training.run_log import NoLog, RunLog
from student.training.schedule import learning_rate

_LOG_EVERY = 10
_EVALUATION_BLOCKS = 128


class TrainingLoop:
    """Runs a learner from its first step to its last, and writes logs, evaluations and checkpoints."""

    def __init__(self, config: TrainConfig, cache: Cache, learner: Learner, meter: Meter, run: dict[str, Any]) -> None:
        self._config, self._cache, self._learner, self._meter, self._run = config, cache, learner, meter, run
        self._processes = learner.parallel.processes

    def run(self, first_step: int, streams: dict[str, Iterator[StreamBatch]], stop: list[int]) -> None:
        """Run steps first_step … max_steps − 1.

        When `stop` has an entry in any process, save a checkpoint after the current step and raise KeyboardInterrupt.
        Do not raise it after the last step. Raise DivergedError when losses, gradients or held-out figures are not
        finite.
        """
        config, processes = self._config, self._processes
        is_quiet = config.quiet or not processes.is_first
        with closing(self._open_log(first_step)) as log:
            self._complete_log(log, first_step)
            with Progress(config.max_steps, "train", "steps", quiet=is_quiet, initial=first_step) as bar:
                for step in range(first_step, config.max_steps):
                    batches = {kind: next(stream) for kind, stream in streams.items()}
                    rows = {kind: batch.rows for kind, batch in batches.items()}
                    self._meter.add_step(*self._learner.step(step, rows))
                    states = {kind: batch.next_state for kind, batch in batches.items()}
                    done = step + 1
                    is_stopping = processes.any(bool(stop))
                    if is_stopping or self._is_due(config.checkpoint_every, done):
                        self._checkpoint(done, states)
                    bar.update(1, **(self._log_steps(log, done) if self._is_due(_LOG_EVERY, done) else {}))
                    if is_stopping and done < config.max_steps:
                        raise KeyboardInterrupt
                    if self._is_due(config.evaluate_every, done):
                        self._log_validation(log, done)

    def _is_due(self, every: int, done: int) -> bool:
        """Whether something is due after `done` steps that happens after every `every` steps and after the last."""
        return done % every == 0 or done == self._config.max_steps

    def _complete_log(self, log: RunLog | NoLog, done: int) -> None:
        """Log what is due after `done` steps and missing, as the run ended between this step's checkpoint and its log.

        Otherwise, start the next line's means after this step.
        """
        if done == 0:
            return
        if self._is_due(_LOG_EVERY, done):
            if self._meter.num_steps and self._processes.any(log.lacks(done, "training")):
                self._log_steps(log, done)
            else:
                self._meter.read()
        if self._is_due(self._config.evaluate_every, done) and self._processes.any(log.lacks(done, "validation")):
            self._log_validation(log, done)

    def _open_log(self, first_step: int) -> RunLog | NoLog:
        if not self._processes.is_first:
            return NoLog()
        log = RunLog(self._config.out, first_step, tensorboard=self._config.tensorboard)
        self._meter.seconds = max(self._meter.seconds, log.seconds)  # the log goes on after the checkpoint was saved
        return log

    def _log_steps(self, log: RunLog | NoLog, done: int) -> dict[str, str]:
        """Log the steps since the last such line; return the figures for the progress bar."""
        found = self._meter.read()
        self._require_finite(done, _are_finite(found))
        log.write(done, **found, learning_rate=learning_rate(done - 1, self._config), **self._meter.totals())
        rate = found.pop("tokens_per_second")
        return {name: f"{value:.3f}" for name, value in found.items()} | {"tok/s": f"{rate:,.0f}"}

    def _log_validation(self, log: RunLog | NoLog, done: int) -> None:
        """Log an evaluation. Every process makes the same one, because an fsdp student needs all of them."""
        parallel = self._learner.parallel
        parallel.model.eval()
        found = parallel.measure(lambda: evaluate_model(parallel.model, self._cache, max_blocks=_EVALUATION_BLOCKS))
        parallel.model.train()
        self._require_finite(done, _are_finite(found))
        log.write(done, validation=found, **self._meter.totals())

    def _checkpoint(self, step: int, states: dict[str, StreamState]) -> None:
        self._require_finite(step, self._meter.is_finite())
        save_checkpoint(
            self._config.out, step=step, learner=self._learner, streams=states, meter=self._meter, run=self._run
        )

    def _require_finite(self, done: int, is_finite: bool) -> None:
        """Raise DivergedError unless the figures of all processes are finite. Call it before writing them."""
        with self._processes.together():
            if not is_finite:
                raise DivergedError(str(self._config.out), done, self._config.learning_rate)


def _are_finite(figures: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for value in figures.values() if value is not None)
