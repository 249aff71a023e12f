"""A store in memory that puts a file only where there is none, and every order of several writers' steps at it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from fsspec import AbstractFileSystem


class CreatingStore(AbstractFileSystem):
    """As gcsfs and adlfs are documented: `mode="create"` raises FileExistsError; every put has a generation."""

    protocol = "gs"
    cachable = False
    files: ClassVar[dict[str, tuple[bytes, int]]] = {}
    gate: ClassVar[Callable[[str, str], None]] = staticmethod(lambda name, path: None)
    num_puts: ClassVar[int] = 0

    def info(self, path: str, **_: Any) -> dict[str, object]:
        self._step("info", path)
        return self._info(path)

    def ukey(self, path: str) -> str:
        self._step("ukey", path)
        return str(self._info(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Part of the step that asked for the size."""
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][0][start:end]

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **_: Any) -> None:
        self._step("put", rpath)
        if mode == "create" and rpath in self.files:
            raise FileExistsError(rpath)
        with open(lpath, "rb") as file:
            CreatingStore.num_puts += 1
            self.files[rpath] = file.read(), self.num_puts

    def rm_file(self, path: str) -> None:
        self._step("remove", path)
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def _info(self, path: str) -> dict[str, object]:
        if path not in self.files:
            raise FileNotFoundError(path)
        content, generation = self.files[path]
        return {"name": path, "size": len(content), "type": "file", "generation": generation}

    def _step(self, name: str, path: str) -> None:
        type(self).gate(name, path)


class Killed(BaseException):
    """Ends a writer that takes no further step."""


class Writers:
    """Writers in threads, of which one at a time takes one step at the store."""

    def __init__(self, writers: list[Callable[[], object]]) -> None:
        self._writers = writers
        self.seen: list[list[Any]] = [[] for _ in writers]
        self.errors: list[BaseException] = []
        self._go = [threading.Semaphore(0) for _ in writers]
        self._is_waiting = threading.Semaphore(0)
        self._is_over = False
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(len(writers))]
        CreatingStore.gate = staticmethod(self._gate)
        for thread in self._threads:
            thread.start()
            self._is_waiting.acquire()
        self.alive = set(range(len(writers)))

    def step(self, writer: int) -> None:
        """Let a writer take its step and go on to its next one, or to its end."""
        self._go[writer].release()
        self._is_waiting.acquire()
        if self.seen[writer] and self.seen[writer][-1] == "end":
            self.alive.discard(writer)

    def kill(self) -> None:
        self._is_over = True
        for go, thread in zip(self._go, self._threads, strict=True):
            go.release()
            thread.join()
        CreatingStore.gate = staticmethod(lambda name, path: None)

    def _work(self, writer: int) -> None:
        try:
            self._writers[writer]()
        except Killed:
            return
        except BaseException as error:
            self.errors.append(error)
        self.seen[writer].append("end")
        self._is_waiting.release()

    def _gate(self, name: str, path: str) -> None:
        writer = self._threads.index(threading.current_thread())
        self._is_waiting.release()
        self._go[writer].acquire()
        if self._is_over:
            raise Killed
        if name == "put" and path.endswith(".arrow"):  # a new attempt, which remembers nothing of the one before
            self.seen[writer].clear()
        self.seen[writer].append((name, path, CreatingStore.files.get(path)))

    def state(self) -> str:
        """What the store holds and what each writer has seen of it, whatever the numbers of the generations are."""
        names: dict[object, int] = {}

        def named(file: tuple[bytes, int] | None) -> object:
            return file and (hash(file[0]), names.setdefault(file[1], len(names)))

        seen = [[(s[0], s[1], named(s[2])) if isinstance(s, tuple) else s for s in steps] for steps in self.seen]
        return repr((seen, [(path, named(file)) for path, file in sorted(CreatingStore.files.items())]))


def every_state(
    start: Callable[[], Writers], most_switches: int | None = None
) -> Iterator[tuple[Writers, tuple[int, ...]]]:
    """Yield the writers in every state that any order of their steps leads to, and one such order.

    most_switches: how often at most a writer goes on while another one is in the middle of its steps.
    """
    seen: set[tuple[str, tuple[int, ...]]] = set()
    orders: deque[tuple[int, tuple[int, ...]]] = deque([(0, ())])  # those with fewer switches first
    while orders:
        num_switches, order = orders.popleft()
        writers = start()
        try:
            for writer in order:
                writers.step(writer)
            while (state := (writers.state(), order[-1:] if most_switches else ())) not in seen:
                seen.add(state)
                yield writers, order
                if not writers.alive:
                    break
                goes_on = bool(order) and order[-1] in writers.alive
                next_one = order[-1] if goes_on else min(writers.alive)
                if most_switches is None or num_switches + goes_on <= most_switches:
                    others = writers.alive - {next_one}
                    orders += [(num_switches + goes_on, (*order, writer)) for writer in sorted(others)]
                writers.step(next_one)
                order = (*order, next_one)
        finally:
            writers.kill()
