"""Runs recipes as torchrun does, in processes forked from one that has everything imported.

Arguments: a directory, and the arguments of the recipes as JSON. The directory gets the weights of a run of two
processes of with_accelerate (two) and of with_trainer (trainer), and of a run of with_accelerate that one process
began, stopped in its sixth step, and three went on with (resumed). Files rows-RUN-RANK.json hold the rows that each
learnt from.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from scripts.loops import with_accelerate, with_trainer
from tests.scripts.loops.watching import Stop, watched

_LONGEST_S = 120


def run(
    recipe: ModuleType, world_size: int, name: str, directory: Path, settings: dict[str, Any], stop_at_step: int = -1
) -> None:
    """Run a recipe in some processes; raise RuntimeError when one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(world_size):
        children.append(os.fork())
        if not children[-1]:
            os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
            os._exit(_learn(recipe, directory / f"rows-{name}-{rank}.json", settings, stop_at_step))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"{name}: exit codes {codes}")


def _learn(recipe: ModuleType, rows: Path, settings: dict[str, Any], stop_at_step: int) -> int:
    faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
    with watched(recipe.__name__.rpartition(".")[2], stop_at_step) as steps:
        try:
            recipe.train(**settings)
        except Stop:
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
            return 1
    rows.write_text(json.dumps(steps))
    return 0


def main(directory: Path, settings: dict[str, Any]) -> None:
    """Make the runs."""
    torch.set_num_threads(1)
    run(with_trainer, 2, "trainer", directory, settings | {"out": str(directory / "trainer")})
    run(with_accelerate, 2, "two", directory, settings | {"out": str(directory / "two")})
    resumed = settings | {"out": str(directory / "resumed")}
    run(with_accelerate, 1, "stopped", directory, resumed, stop_at_step=5)
    run(with_accelerate, 3, "resumed", directory, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
