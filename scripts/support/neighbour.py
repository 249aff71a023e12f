"""A process that keeps one core busy while something is measured.

    python -m scripts.support.neighbour KIND PARENT

runs until the process PARENT ends, so that a killed benchmark leaves no busy core behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]
_ROUNDS_PER_LOOK = 100


@contextlib.contextmanager
def busy_neighbour(kind: str) -> Iterator[None]:
    """Keep one core busy inside the context, with work of a kind in NEIGHBOURS.

    Return when the work has begun. Raise RuntimeError if it does not begin.
    """
    command = [sys.executable, "-m", __spec__.name, kind, str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=_REPOSITORY)
    try:
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError(f"{' '.join(command)} ended")
        yield
    finally:
        process.kill()
        process.communicate()


def _loop() -> Callable[[], object]:
    values = bytes(1 << 16)
    return lambda: hashlib.sha256(values).digest()


def _small_models() -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    inputs, parameters = torch.randn(64, 64), list(model.parameters())
    return lambda: torch.autograd.grad(model(inputs).square().mean(), parameters)


NEIGHBOURS: dict[str, Callable[[], Callable[[], object]]] = {"a busy loop": _loop, "small models": _small_models}


def main() -> None:
    """Start the work of a kind, print a line when it has begun, and go on until the parent has ended."""
    kind, parent = sys.argv[1], int(sys.argv[2])
    run = NEIGHBOURS[kind]()
    run()
    print("begun", flush=True)
    while os.getppid() == parent:
        for _ in range(_ROUNDS_PER_LOOK):
            run()


if __name__ == "__main__":
    main()
