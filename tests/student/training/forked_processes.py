"""Starts teachonce-student as torchrun does, in processes forked from one that has everything imported.

Reads jobs from standard input, a line of JSON each: {"world_size", "argv", "log_dir", "faults", "shortages",
"is_torchrun"}; answers each with the processes' exit codes; {rank} in a word of argv is the process's number. Without
is_torchrun the processes know what PyTorch's env:// needs and no more. Their messages, and the rows that
they trained on, are files of `log_dir`. Faults are [rank, step, signal number]: the process gets the signal when it
begins that step, counted from 0. Shortages are [rank, step, place, micro-batches]: from that step on the process runs
out of memory at that place of a step (see `run_short`) that is cut into fewer micro-batches.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint
import torch.distributed.fsdp
import transformers.models.gpt2.modeling_gpt2  # noqa: F401
from torch.distributed import TCPStore

from student.cli import main
from student.training import loop
from student.training.learner import Learner
from student.training.objective import Objective
from student.training.parallel import ParallelModel

_LONGEST_S = 120


def run(job: dict[str, Any]) -> list[int]:
    """Exit codes by rank. The meeting point is this process's, as it is torchrun's: its port is nobody else's."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port if job["is_torchrun"] else free_port()
    children = [start(job, rank, port) for rank in range(job["world_size"])]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start(job: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    log_dir = Path(job["log_dir"])
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(log_dir / f"{name}-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job["world_size"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if job["is_torchrun"]:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
    torch.set_num_threads(1)
    for shortage in job["shortages"]:
        if shortage[0] == rank:
            run_short(*shortage[1:])
    watch(rank, job["faults"], log_dir)
    sys.argv = ["teachonce-student", *(word.replace("{rank}", str(rank)) for word in job["argv"])]
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stderr.flush()
    os._exit(code)


def watch(rank: int, faults: list[list[int]], log_dir: Path) -> None:
    """Note the rows of every step, and send the signals that are due."""
    original = Learner.step

    def step(self: Learner, number: int, rows: dict[str, Any]) -> Any:
        for _, _, signal_number in [fault for fault in faults if fault[:2] == [rank, number]]:
            os.kill(os.getpid(), signal_number)
        done = original(self, number, rows)
        ids = {kind: batch.column("row_id").to_pylist() for kind, batch in rows.items()}
        with (log_dir / f"rows-{rank}").open("a") as file:
            file.write(json.dumps([number, ids]) + "\n")
        return done

    Learner.step = step  # type: ignore[method-assign]


def run_short(first_step: int, place: str, micro_batches: int) -> None:
    """Run out of memory "making batches", "in the first pass", "in the last pass" or "updating".

    The last pass has added up its gradients then.
    """
    make_step, make_batches = Learner.step, Objective._batches
    make_pass, join = ParallelModel.accumulate, ParallelModel.join_gradients
    step_number = 0
    is_short = False

    def require(at: str) -> None:
        if is_short and at == place:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def step(self: Learner, number: int, rows: dict[str, Any]) -> Any:
        nonlocal step_number
        step_number = number
        return make_step(self, number, rows)

    def batches(self: Objective, kind: str, stored: Any) -> Any:
        nonlocal is_short
        is_short = step_number >= first_step and self.micro_batches < micro_batches
        require("making batches")
        return make_batches(self, kind, stored)

    def one_pass(self: ParallelModel, loss: Any, *, is_last: bool) -> Any:
        require("in the first pass")
        done = make_pass(self, loss, is_last=is_last)
        if is_last:
            require("in the last pass")
        return done

    def join_gradients(self: ParallelModel) -> None:
        require("updating")
        join(self)

    Learner.step, Objective._batches = step, batches  # type: ignore[method-assign]
    ParallelModel.accumulate, ParallelModel.join_gradients = one_pass, join_gradients  # type: ignore[method-assign]


if __name__ == "__main__":
    loop._LOG_EVERY = 1
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
