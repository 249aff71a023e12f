"""The driver's decisions, on a Ray that is made up: who gets which shard, and what follows a death."""

from __future__ import annotations

import functools
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import PrecomputeConfig
from pipeline.engines.ray_driver import _Crew
from pipeline.engines.ray_session import Share, ray_session, share_out
from pipeline.engines.ray_worker import Failure, RayWorker, worker_config
from pipeline.errors import WorkerError
from pipeline.plan import Begun, ShardRange
from storage.errors import ConfigError, StoppedError
from storage.records.identity import ShardKey


class Died(Exception):
    pass


class FakeRay:
    """Runs each call of an actor when it is waited for; of several, the one that was asked for first."""

    exceptions = SimpleNamespace(RayActorError=Died, WorkerCrashedError=Died, NodeDiedError=Died, OutOfMemoryError=Died)

    def __init__(self) -> None:
        self.killed: list[object] = []

    def wait(
        self, calls: list[Callable[[], object]], timeout: float, num_returns: int = 1
    ) -> tuple[list[Any], list[Any]]:
        assert timeout > 0
        return calls[:num_returns], calls[num_returns:]

    def get(self, call: Callable[[], object]) -> object:
        return call()

    def kill(self, actor: object) -> None:
        self.killed.append(actor)


class FakeActor:
    """Answers or raises what a script says about shards (by path), "host" and "load"; otherwise all goes well."""

    def __init__(
        self, number: int, begun: Begun, num_parts: int, script: dict[str, list[object]], log: list[tuple[int, str]]
    ) -> None:
        def answer(name: str, usual: object) -> object:
            if name not in ("host", "open"):
                log.append((number, name))
            found = script[name].pop(0) if script.get(name) else usual
            if isinstance(found, Exception):
                raise found
            return found

        self.host = SimpleNamespace(remote=lambda: functools.partial(answer, "host", f"host-{number}"))
        self.open = SimpleNamespace(remote=lambda: functools.partial(answer, "open", num_parts))
        self.tokenize = SimpleNamespace(remote=lambda part: functools.partial(answer, f"part {part}", False))
        self.load = SimpleNamespace(remote=lambda: functools.partial(answer, "load", begun))
        self.write = SimpleNamespace(remote=lambda shard: functools.partial(answer, shard.key.path, "made"))
        self.leave = SimpleNamespace(remote=lambda: log.append((number, "leave")))


def planned(num_shards: int) -> list[ShardRange]:
    return [
        ShardRange(
            key=ShardKey(kind="beams", split="train", index=i, num_shards=num_shards), first_row=i, end_row=i + 1
        )
        for i in range(num_shards)
    ]


CALLS = ("host", "load", "leave")
PATHS = [shard.key.path for shard in planned(5)]


@pytest.fixture
def run(identity: Any) -> Callable[..., tuple[list[tuple[int, str]], FakeRay]]:
    """Runs a crew to its end; who did what, in order, and the Ray."""

    def run(
        num_workers: int, per_worker: int = 1, num_parts: int = 0, **script: list[object]
    ) -> tuple[list[tuple[int, str]], FakeRay]:
        begun = Begun(identity=identity, shards=planned(5), tokenizer_files=[])
        log: list[tuple[int, str]] = []
        numbers, ray = itertools.count(), FakeRay()
        named = {
            PATHS[int(name[-1])] if name.startswith("shard") else name.replace("_", " "): answers
            for name, answers in script.items()
        }
        with _Crew(ray, lambda: FakeActor(next(numbers), begun, num_parts, named, log), per_worker, quiet=True) as crew:
            assert crew.run(num_workers) is begun
        return log, ray

    return run


@pytest.fixture(scope="module")
def identity() -> object:
    return object()


@pytest.mark.parametrize("per_worker", [1, 2])
@pytest.mark.parametrize("num_workers", [1, 2, 5, 9])
def test_every_shard_is_handed_out_once(run: Callable[..., Any], num_workers: int, per_worker: int) -> None:
    log, ray = run(num_workers, per_worker)
    assert sorted(name for _, name in log if name not in CALLS) == PATHS
    assert sum(name == "leave" for _, name in log) == sum(name == "load" for _, name in log)
    assert len(ray.killed) == num_workers


PARTS = [f"part {index}" for index in range(4)]


@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_every_part_of_the_text_is_handed_out_before_a_worker_loads_it(
    run: Callable[..., Any], num_workers: int
) -> None:
    log, _ = run(num_workers, num_parts=4, part_2=[Died(), False])
    names = [name for _, name in log]
    assert sorted(name for name in names if name in PARTS) == sorted([*PARTS, "part 2"])
    assert max(map(names.index, PARTS)) < names.index("load")
    assert sorted(name for name in names if name in PATHS) == PATHS


def test_when_parts_are_enough_no_more_are_handed_out(run: Callable[..., Any]) -> None:
    log, _ = run(1, num_parts=4, part_1=[True])
    assert [name for _, name in log if name in PARTS] == PARTS[:2]


def test_a_part_that_fails_is_left_to_the_load_which_meets_errors_in_order(run: Callable[..., Any]) -> None:
    log, _ = run(1, num_parts=4, part_1=[Failure(reason="bad row")])
    assert [name for _, name in log if name in PARTS] == PARTS[:2]
    with pytest.raises(WorkerError, match=r"^worker on host-0: bad row$"):
        run(1, num_parts=4, part_1=[Failure(reason="bad row")], load=[Failure(reason="bad row")])


def test_a_dead_workers_shard_goes_to_another_at_once(run: Callable[..., Any]) -> None:
    log, ray = run(2, shard_1=[Died()])
    assert [name for _, name in log].count(PATHS[1]) == 2
    assert {name for _, name in log} == {"load", "leave", *PATHS}
    assert [name for _, name in log].count("load") == 3
    assert len(ray.killed) == 3


def test_a_worker_that_dies_with_two_shards_is_replaced_once(run: Callable[..., Any]) -> None:
    log, ray = run(2, 2, shard_0=[Died()], shard_1=[Died()])
    made = [name for _, name in log if name not in CALLS]
    assert sorted(made) == sorted([*PATHS, PATHS[0], PATHS[1]])
    assert len(ray.killed) == 3


def test_deaths_of_different_shards_do_not_add_up(run: Callable[..., Any]) -> None:
    log, _ = run(1, **{f"shard_{i}": [Died()] * 3 for i in range(5)})
    assert [name for _, name in log].count("load") == 16


def test_a_shard_that_kills_every_worker_ends_the_run(run: Callable[..., Any]) -> None:
    message = "x\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
    with pytest.raises(WorkerError, match=rf"died 4 times while making {PATHS[2]} \(its worker process has died\)"):
        run(2, shard_2=[Died(message)] * 4)


def test_a_worker_that_dies_whenever_it_loads_ends_the_run_and_names_its_host(run: Callable[..., Any]) -> None:
    with pytest.raises(
        WorkerError, match=r"worker on host-3: died 4 times while loading .*\(killed\).*memory"
    ) as caught:
        run(1, load=[Died("killed")] * 4)
    assert caught.value.host == "host-3"


def test_a_worker_that_cannot_start_ends_the_run_at_once(run: Callable[..., Any]) -> None:
    error = Died("because of an error (pid=1, ip=10.0.0.7, repr=x)\n  File x\nModuleNotFoundError: No module named 'y'")
    error.actor_init_failed = True  # type: ignore[attr-defined]
    with pytest.raises(WorkerError, match=r"worker on 10.0.0.7: cannot start \(ModuleNotFoundError: No module"):
        run(1, host=[error])


def test_nothing_at_an_address_is_told_within_seconds() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[ray]")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        pytest.raises(ConfigError, match=r"--address 127.0.0.1:\d+: no connection to Ray .*ray start"),
        ray_session(config(address=f"127.0.0.1:{port}")),
    ):
        pass


def test_a_failure_is_told_with_its_host(run: Callable[..., Any]) -> None:
    with pytest.raises(WorkerError, match=r"^worker on host-0: no such teacher$"):
        run(2, load=[Failure(reason="no such teacher")])


def test_a_shard_that_strangers_are_at_is_tried_again_after_the_others(run: Callable[..., Any]) -> None:
    log, _ = run(1, shard_0=["taken", "taken"])
    assert [name for _, name in log if name not in CALLS] == [*PATHS, PATHS[0], PATHS[0]]


def config(**changes: object) -> PrecomputeConfig:
    settings = {"teacher": "t", "data": "d", "out": Path("o"), "engine": "ray"}
    return PrecomputeConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "changes", "found"),
    [
        ([{"CPU": 8.0}], {}, (1, 0, 8)),
        ([{"CPU": 8.0}], {"num_workers": 3}, (3, 0, 2)),
        ([{"CPU": 8.0}, {"CPU": 3.0}, {"memory": 1.0}], {}, (2, 0, 4)),
        ([{"CPU": 5.0}, {"CPU": 5.0}], {"num_workers": 3}, (3, 0, 2)),
        ([{"CPU": 2.0}], {"num_workers": 2}, (2, 0, 1)),
        ([{"CPU": 96.0, "GPU": 8.0}], {}, (8, 1, 12)),
        ([{"CPU": 96.0, "GPU": 8.0}, {"CPU": 4.0}], {"num_workers": 2}, (2, 1, 48)),
        ([{"CPU": 96.0, "GPU": 8.0}, {"CPU": 10.0, "GPU": 1.0}], {}, (9, 1, 10)),
        ([{"CPU": 4.0, "GPU": 8.0}], {}, (8, 1, 0)),
        ([{"CPU": 6.0, "GPU": 2.0}], {"device": "cpu"}, (1, 0, 6)),
        ([{"CPU": 6.0, "GPU": 2.0}], {"device": "cuda"}, (2, 1, 3)),
    ],
)
def test_machines_are_divided_so_that_every_worker_finds_a_place(
    nodes: list[dict[str, float]], changes: dict[str, object], found: tuple[int, int, int]
) -> None:
    num_workers, num_gpus, num_cpus = found
    assert share_out(config(**changes), nodes) == Share(num_workers=num_workers, num_gpus=num_gpus, num_cpus=num_cpus)


@pytest.mark.parametrize(
    ("nodes", "changes", "message"),
    [
        ([{"CPU": 4.0}], {"device": "cuda"}, "no GPU"),
        ([{"CPU": 4.0}], {"num_workers": 5}, "has 4 CPUs; expected 1 to 4"),
        ([{"CPU": 4.0, "GPU": 2.0}], {"num_workers": 3}, "has 2 GPUs; expected 1 to 2"),
        ([{"CPU": 0.0}], {}, "has 0 CPUs"),
    ],
)
def test_more_workers_than_there_is_room_for(
    nodes: list[dict[str, float]], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        share_out(config(**changes), nodes)


def test_without_ray_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--engine ray: .*pip install"), ray_session(config()):
        pass


def test_a_ray_of_ones_own_that_cannot_start_is_not_told_as_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("no room in /dev/shm\nand more")

    exceptions = SimpleNamespace(RayError=Died)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, exceptions=exceptions))
    with (
        pytest.raises(ConfigError, match=r"^--engine ray: .*\(no room in /dev/shm\); .*--address$"),
        ray_session(config()),
    ):
        pass


def test_a_worker_is_told_paths_that_hold_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    told = worker_config(config(teacher="gpt2", data="text.txt"), on_gpu=True, num_threads=3)
    assert (told.teacher, told.data, told.out) == ("gpt2", str(tmp_path / "text.txt"), tmp_path / "o")
    assert (told.device, told.quiet, told.work_dir) == ("cuda", True, None)
    chats = {"messages_column": "messages", "chat_template": Path("chat.jinja"), "chat_date": "2026-03-01"}
    told = worker_config(config(**chats), on_gpu=False, num_threads=3)
    assert (told.chat_template, told.chat_date) == (tmp_path / "chat.jinja", "2026-03-01")
    told = worker_config(config(out="s3://bucket/cache", work_dir=Path("scratch")), on_gpu=False, num_threads=3)
    assert (told.out, told.work_dir) == ("s3://bucket/cache", tmp_path / "scratch")


def test_a_worker_that_sees_another_directory_than_the_driver_says_so(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    worker = RayWorker(config(out=tmp_path), "driver-1", 1)
    found = worker.open()
    assert isinstance(found, Failure)
    assert "all hosts share" in found.reason
    assert list(tmp_path.iterdir()) == [tmp_path / ".work"]


def test_a_worker_without_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_teacher_and_source(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr("pipeline.job.load_teacher_and_source", load_teacher_and_source)
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "driver-1").touch()
    found = RayWorker(config(out=tmp_path), "driver-1", 1).open()
    assert isinstance(found, Failure)
    assert found.reason.startswith("not enough memory")


@pytest.mark.parametrize(
    "changes",
    [{"engine": "local", "num_workers": 2}, {"engine": "local", "address": "auto"}, {"num_workers": 0},
     {"device": "cuda:1"}],
)  # fmt: skip
def test_settings_that_do_not_go_together(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        config(**changes)


def test_a_worker_at_a_url_has_the_teacher_for_one_shard_while_another_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = RayWorker(config(out="memory://bucket/cache", work_dir=tmp_path), None, 1)
    worker._job = SimpleNamespace(producers={"beams": None})  # type: ignore[assignment]
    worker._begun = SimpleNamespace(identity=None)  # type: ignore[assignment]
    all_at, is_sent, at_teacher = threading.Barrier(3), threading.Event(), list[int]()
    failures: list[Exception] = [ConfigError("no network"), StoppedError()]

    def write_missing_shards(
        destination: object, identity: object, producer: object, shards: Iterator[ShardRange], count: Any
    ) -> list[ShardRange]:
        for shard in shards:
            at_teacher.append(shard.key.index)
            assert len(at_teacher) == 1
            time.sleep(0.01)
            at_teacher.remove(shard.key.index)
        all_at.wait(20)  # the teacher has made both shards, and none is sent
        is_sent.wait(20)
        raise failures.pop(0)

    monkeypatch.setattr("pipeline.engines.shard_writing.write_missing_shards", write_missing_shards)
    monkeypatch.setattr("pipeline.engines.ray_worker._LOOK_AGAIN_AFTER_S", 0)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(worker.write, shard) for shard in planned(2)]
        all_at.wait(20)
        is_sent.set()
        found = [answer.result(20) for answer in answers]
    assert sorted(map(str, found)) == ["Failure(reason='no network')", "taken"], "the one that says why ends the run"
