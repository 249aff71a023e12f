"""--engine ray: workers that Ray starts, one per GPU or per share of the CPUs, make the shards of the plan.

The driver does not load the teacher or the text. It gives each shard to an idle worker. When a worker dies, it asks Ray
for another one and gives the shard out again. That is safe: a shard is a pure function of configuration and data, and
only complete shards are committed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.engines.kind_progress import KindProgress
from pipeline.engines.ray_session import Share, ray_session, share_out
from pipeline.engines.ray_worker import Failure, Outcome, RayWorker, worker_config
from pipeline.errors import WorkerError
from pipeline.plan import Begun, ShardRange, TokenizedText
from storage.disk.files import refusals
from storage.progress import Progress
from storage.remote.directory import is_remote_url
from storage.writing.destinations import Destination

# Give up when workers have died this often at the same task: it is unlikely to be chance.
_MAX_DEATHS = 4
_REPORT_WAITING_AFTER_S = 60.0
_LEAVE_WITHIN_S = 10.0
# Shards that a worker has at a time: at a URL one is sent while the teacher makes the next.
_SHARDS_PER_WORKER, _SHARDS_PER_WORKER_AT_URL = 1, 2
_CAUSE_OF_DEATH = re.compile(r"The actor is dead because (.+?)\.(?:\s|$)")
_IP = re.compile(r"\bip[=:] ?([0-9a-f.:]*[0-9a-f])")


def write_on_ray(config: PrecomputeConfig, destination: Destination) -> Begun:
    """Make shards on Ray and return when every shard is committed.

    Raises WorkerError, ConfigError or WriteRefusedError.
    """
    begun = _run(config, destination)
    assert isinstance(begun, Begun)
    return begun


def tokenize_on_ray(config: PrecomputeConfig, destination: Destination) -> TokenizedText:
    """Tokenize the text on Ray's CPUs. Raises as write_on_ray."""
    made = _run(dataclasses.replace(config, device="cpu"), destination)
    assert isinstance(made, TokenizedText)
    return made


def _run(config: PrecomputeConfig, destination: Destination) -> Begun | TokenizedText:
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(ray_session(config))
        share = share_out(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        _announce(config, share)
        meeting_point = stack.enter_context(_meeting_point(config, destination))
        num_shards = _SHARDS_PER_WORKER_AT_URL if meeting_point is None else _SHARDS_PER_WORKER
        options = {"num_cpus": share.num_cpus, "num_gpus": share.num_gpus, "max_concurrency": num_shards}
        start = functools.partial(
            ray.remote(RayWorker).options(**options).remote,
            worker_config(config, on_gpu=share.num_gpus > 0, num_threads=max(share.num_cpus, 1)),
            meeting_point,
            max(share.num_cpus, 1),
        )
        crew = stack.enter_context(_Crew(ray, start, num_shards, quiet=config.quiet))
        return crew.run(share.num_workers)


@contextlib.contextmanager
def _meeting_point(config: PrecomputeConfig, destination: Destination) -> Iterator[str | None]:
    """Yield the name of a temporary file in the work directory, or None when --out is a URL.

    A worker that finds the file knows that it sees the same directory as the driver.
    """
    if is_remote_url(str(config.out)):
        yield None
        return
    with contextlib.ExitStack() as stack:
        with refusals(destination.work_dir):
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=destination.work_dir, prefix="driver-"))
        yield Path(file.name).name


def _announce(config: PrecomputeConfig, share: Share) -> None:
    if not config.quiet:
        gpus = ", each with a GPU" if share.num_gpus else ""
        print(f"Ray workers: {share.num_workers}{gpus}, CPUs each: {share.num_cpus}; loading", file=sys.stderr)


@dataclass(eq=False)
class _Worker:
    """An actor, the number of its place in the crew, and its host, empty until the actor has answered.

    is_open: whether it has the teacher and the source, so that it can tokenize. has_loaded: whether it has the joined
    text and the plan, so that it can write shards.
    """

    actor: Any
    place: int
    host: str = ""
    is_open: bool = False
    has_loaded: bool = False


@dataclass(frozen=True)
class _Task:
    """A call that a worker has not answered yet: "host", "open", "load", the part to tokenize or the shard to write."""

    worker: _Worker
    work: str | int | ShardRange

    @property
    def name(self) -> str:
        """Key for counting deaths: the part or shard, which any worker may get, or the call and the worker's place."""
        if isinstance(self.work, ShardRange):
            return self.work.key.path
        return f"{self.work} {self.worker.place}" if isinstance(self.work, str) else f"part {self.work}"

    @property
    def doing(self) -> str:
        """What the worker is at, in words."""
        if isinstance(self.work, str):
            return "loading teacher and text"
        return f"making {self.work.key.path}" if isinstance(self.work, ShardRange) else f"tokenizing {self.name}"


class _Crew:
    """The workers of a run, the calls that each one is working on, and the shards that wait.

    shards_per_worker: the number of shards that a worker may have at a time.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], shards_per_worker: int, *, quiet: bool) -> None:
        self._ray, self._start, self._quiet = ray, start, quiet
        self._shards_per_worker = shards_per_worker
        self._workers: dict[int, _Worker] = {}
        self._tasks: dict[Any, _Task] = {}
        self._parts: deque[int] | None = None  # those to tokenize, once a worker has counted them
        self._waiting: deque[ShardRange] = deque()
        self._deaths: Counter[str] = Counter()
        self._made: Begun | TokenizedText | None = None
        self._stack = contextlib.ExitStack()
        self._progress: KindProgress | None = None
        errors = ray.exceptions
        self._died = (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError)

    def __enter__(self) -> _Crew:
        self._stack.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            is_loading = {task.worker for task in self._tasks.values()}
            leaving = [worker.actor.leave.remote() for worker in self._workers.values() if worker not in is_loading]
            self._ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_WITHIN_S)
        for worker in self._workers.values():
            self._ray.kill(worker.actor)
        self._stack.__exit__(kind, *error)

    def run(self, num_workers: int) -> Begun | TokenizedText:
        """Start the workers, give out parts of the text, then shards, and return when every shard is committed."""
        for place in range(num_workers):
            self._hire(place)
        while self._made is None or self._waiting or self._num_at(ShardRange):
            self._give_out()
            done, _ = self._ray.wait(list(self._tasks), timeout=_REPORT_WAITING_AFTER_S)
            for answer in done:
                self._settle(answer)
            if not done and self._parts is None and not self._quiet:
                placed = sum(bool(worker.host) for worker in self._workers.values())
                print(f"waiting: Ray has found a place for {placed} of {num_workers} workers", file=sys.stderr)
        return self._made

    def _num_at(self, kind: type) -> int:
        return sum(isinstance(task.work, kind) for task in self._tasks.values())

    def _give_out(self) -> None:
        """Give work to workers. The text is joined, and loaded by each, when all of its parts are made."""
        num_tasks = Counter(task.worker for task in self._tasks.values())
        for worker in (worker for worker in self._workers.values() if worker.is_open and not num_tasks[worker]):
            if self._parts:
                part = self._parts.popleft()
                self._tasks[worker.actor.tokenize.remote(part)] = _Task(worker, part)
            elif not worker.has_loaded and not self._num_at(int):
                self._tasks[worker.actor.load.remote()] = _Task(worker, "load")
        while self._waiting and (free := self._freest()):
            shard = self._waiting.popleft()
            self._tasks[free.actor.write.remote(shard)] = _Task(free, shard)

    def _freest(self) -> _Worker | None:
        """Return the loaded worker with the fewest shards; None when all have as many as they may have."""
        num_tasks = Counter(task.worker for task in self._tasks.values())
        free = [w for w in self._workers.values() if w.has_loaded and num_tasks[w] < self._shards_per_worker]
        return min(free, key=lambda worker: num_tasks[worker], default=None)

    def _hire(self, place: int) -> None:
        worker = self._workers[place] = _Worker(self._start(), place)
        self._tasks[worker.actor.host.remote()] = _Task(worker, "host")

    def _settle(self, answer: Any) -> None:
        task = self._tasks.pop(answer)
        worker = task.worker
        try:
            result = self._ray.get(answer)
        except self._died as error:
            self._replace(task, error)
            return
        if isinstance(result, Failure) and not isinstance(task.work, int):
            raise WorkerError(worker.host, result.reason)
        if task.work == "host":
            worker.host = result
            self._tasks[worker.actor.open.remote()] = _Task(worker, "open")
            return
        if task.work == "open":
            self._open(worker, result)
        elif task.work == "load":
            worker.has_loaded = True
            self._begin(result)
        elif isinstance(task.work, int):
            self._count_part(result)
        elif isinstance(task.work, ShardRange):
            self._count(task.work, result)

    def _open(self, worker: _Worker, num_parts: int) -> None:
        worker.is_open = True
        if self._parts is None:
            self._parts = deque(range(num_parts))
            quiet = self._quiet or not num_parts
            self._bar = self._stack.enter_context(Progress(num_parts, "tokenize", "parts", quiet=quiet))

    def _begin(self, made: Begun | TokenizedText) -> None:
        if self._made is None:
            self._made = made
            if isinstance(made, Begun):
                self._waiting.extend(made.shards)
                self._progress = self._stack.enter_context(KindProgress(made.shards, quiet=self._quiet))

    def _count_part(self, is_enough: bool | Failure) -> None:
        """Count a part. After a failure give out no more: the workers meet it in order when they load the text."""
        assert self._parts is not None
        if is_enough:
            self._parts.clear()
        if not isinstance(is_enough, Failure):
            self._bar.update(1)

    def _count(self, shard: ShardRange, outcome: Outcome) -> None:
        assert self._progress is not None
        if outcome == "taken":
            self._waiting.append(shard)
        else:
            self._progress.count(shard.key.kind, shard.num_rows, is_new=outcome == "made")

    def _replace(self, task: _Task, error: Exception) -> None:
        """Start a worker in the place of one that died, and put its shard first in the queue.

        Raises WorkerError when workers cannot start, or after _MAX_DEATHS deaths at the same task.
        """
        if getattr(error, "actor_init_failed", False):
            reason = f"cannot start ({_last_line(error)}); install the same teachonce on every machine of the cluster"
            raise WorkerError(_host_of(task, error), reason)
        self._deaths[task.name] += 1
        if self._deaths[task.name] >= _MAX_DEATHS:
            cause = _CAUSE_OF_DEATH.search(str(error))
            raise WorkerError(
                _host_of(task, error),
                f"died {_MAX_DEATHS} times while {task.doing} ({cause[1] if cause else _last_line(error)}); "
                "look there for lack of memory; what was committed is safe",
            )
        is_replaced = self._workers[task.worker.place] is not task.worker
        if isinstance(task.work, ShardRange):
            # Separate the shards of one worker: it may be one of them that kills.
            (self._waiting.append if is_replaced else self._waiting.appendleft)(task.work)
        if isinstance(task.work, int) and self._parts is not None:
            self._parts.appendleft(task.work)
        if not is_replaced:
            self._ray.kill(task.worker.actor)  # it may still run and only be unreachable
            self._hire(task.worker.place)


def _host_of(task: _Task, error: Exception) -> str:
    ip = _IP.search(str(error))
    return task.worker.host or (ip[1] if ip else "an unknown host")


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
