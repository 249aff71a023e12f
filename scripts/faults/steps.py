"""Observe every step that changes files below a directory, as moments at which a fault can be injected.

Inside `observed_steps`, Python's functions that create, write, sync, rename and remove files call a hook before and
after each step and halfway through each write. When a hook raises, the step fails as if the operating system refused
it. When a hook kills the process, the files are those of a crash.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.disk.files import TEMPORARY_PREFIX


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment before, halfway through or after an action on a file. `subject` is the role of the file."""

    action: str
    when: str
    subject: str

    def __str__(self) -> str:
        return f"{self.when} {self.action} of {self.subject}"


_SUBJECTS = {
    ".": "directory",
    ".work": "work files",
    "plan.json": "plan",
    "tokenizer": "tokenizer",
    "soft_targets": "shard",
    "samples": "shard",
    "beams": "shard",
    "commits": "commit record",
    "README.md": "card",
    "manifest.json": "manifest",
    "checkpoint.pt": "checkpoint",
    "metrics.jsonl": "run log",
}

Hook = Callable[[Moment], None]


@contextlib.contextmanager
def observed_steps(root: Path, hook: Hook) -> Iterator[None]:
    """Inside the block, call `hook` at every moment of every step below `root`."""
    with contextlib.ExitStack() as undo:
        for owner, name, replacement in _Observer(root, hook).replacements():
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def recorded_moments(root: Path, work: Callable[[], object]) -> list[Moment]:
    """Run `work` and return all of its moments, in order."""
    moments: list[Moment] = []
    with observed_steps(root, moments.append):
        work()
    return moments


def at_moment(index: int, action: Callable[[Moment], None]) -> Hook:
    """Return a hook that calls `action` at the index-th moment only."""
    numbers = itertools.count()

    def hook(moment: Moment) -> None:
        if next(numbers) == index:
            action(moment)

    return hook


def subject_of(relative: str) -> str:
    """Return the role of a file in a cache or in a student's directory."""
    top = relative.partition("/")[0]
    if top.startswith(TEMPORARY_PREFIX):
        top = top.removeprefix(TEMPORARY_PREFIX).partition("-")[2]
    return _SUBJECTS.get(top, "student")


class _Observer:
    def __init__(self, root: Path, hook: Hook) -> None:
        self._root, self._hook = os.path.abspath(root), hook
        self._paths: dict[int, str] = {}
        self._last_in: dict[str, str] = {}

    def replacements(self) -> list[tuple[Any, str, Any]]:
        """Return (module or class, name, replacement) for each function to replace."""
        found: list[tuple[Any, str, Any]] = [
            (os, "open", self._os_open()),
            (os, "fsync", self._fsync()),
            (os, "mkdir", self._on_first_path("mkdir", os.mkdir)),
            (os, "unlink", self._on_first_path("remove", os.unlink)),
            (os, "rmdir", self._on_first_path("remove", os.rmdir)),
            (os, "rename", self._on_second_path("rename", os.rename)),
            (os, "replace", self._on_second_path("rename", os.replace)),
            (os, "link", self._on_second_path("link", os.link)),
        ]
        opened = self._open(io.open)
        found += [(io, "open", opened), (builtins, "open", opened)]
        accessor = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10 looks the functions up there
        if accessor is not None:
            found += [(accessor, name, staticmethod(new)) for _, name, new in found if hasattr(accessor, name)]
        return found

    def tell(self, action: str, when: str, path: str) -> None:
        """Call the hook with the moment of an action on a file below the root."""
        relative = os.path.relpath(path, self._root)
        self._hook(Moment(action=action, when=when, subject=subject_of(relative)))

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return the absolute path of a file below the root, None for any other file."""
        if isinstance(path, int):
            return self._paths.get(path)
        if dir_fd is not None and dir_fd not in self._paths:
            return None
        base = os.getcwd() if dir_fd is None else self._paths[dir_fd]
        full = os.path.normpath(os.path.join(base, os.fsdecode(path)))
        return full if full == self._root or full.startswith(self._root + os.sep) else None

    @contextlib.contextmanager
    def _around(self, action: str, path: str | None) -> Iterator[None]:
        if path is None:
            yield
            return
        self.tell(action, "before", path)
        yield
        self.tell(action, "after", path)

    def _on_first_path(self, action: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(path: Any, *args: Any, dir_fd: int | None = None) -> None:
            with self._around(action, self._inside(path, dir_fd)):
                original(path, *args, dir_fd=dir_fd)

        return step

    def _on_second_path(self, action: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(source: Any, target: Any, **settings: Any) -> None:
            path = self._inside(target)
            if path is not None:
                self._last_in[os.path.dirname(path)] = path
            with self._around(action, path):
                original(source, target, **settings)

        return step

    def _fsync(self) -> Callable[[Any], None]:
        original = os.fsync

        def fsync(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            path = self._paths.get(descriptor)
            if path is not None and stat.S_ISDIR(os.fstat(descriptor).st_mode):
                with self._around("directory fsync", self._last_in.get(path, path)):
                    original(descriptor)
            else:
                with self._around("fsync", path):
                    original(descriptor)

        return fsync

    def _os_open(self) -> Callable[..., int]:
        original = os.open

        def open_descriptor(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            inside = self._inside(path, dir_fd)
            with self._around("open", inside if flags & os.O_CREAT else None):
                descriptor = original(path, flags, mode, dir_fd=dir_fd)
            self.remember(descriptor, inside)
            return descriptor

        return open_descriptor

    def remember(self, descriptor: int, path: str | None) -> None:
        """Record the file of a descriptor. Descriptor numbers are reused, so replace an older entry."""
        self._paths.pop(descriptor, None)
        if path is not None:
            self._paths[descriptor] = path

    def _open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
            is_plain = not isinstance(file, int) and "opener" not in settings and "+" not in mode
            path = self._inside(file) if is_plain and set(mode) & set("wxa") else None
            if path is None:
                return original(file, mode, *args, **settings)
            raw = _ObservedFile(self, path, mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            settings.pop("buffering", None)
            return io.TextIOWrapper(buffered, *args[1:], **settings)

        return opened


class _ObservedFile(io.FileIO):
    """The raw file below Python's buffer. A write to it is a write to the operating system."""

    def __init__(self, observer: _Observer, path: str, mode: str) -> None:
        self._observer, self._path = observer, path
        observer.tell("open", "before", path)
        super().__init__(path, mode)
        observer.remember(self.fileno(), path)
        observer.tell("open", "after", path)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        self._observer.tell("write", "before", self._path)
        self._write_all(view[:half])
        self._observer.tell("write", "halfway through", self._path)
        self._write_all(view[half:])
        self._observer.tell("write", "after", self._path)
        return len(view)

    def _write_all(self, view: memoryview) -> None:
        while len(view):
            view = view[super().write(view) :]
