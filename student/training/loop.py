"""The steps of a run: train, log, validate, save."""

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
    """A learner on its way from its first step to its last, with what is written meanwhile."""

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
