"""Starts teachonce-student as torchrun does, in processes forked from one that has everything imported.

Reads jobs from standard input, a line of JSON each: {"world_size", "argv", "log_dir", "faults"}; answers each with the
processes' exit codes. Their messages, and the rows that they trained on, are files of `log_dir`. Faults are
[rank, step, signal number]: the process gets the signal when it begins that step, counted from 0.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint
import torch.distributed.fsdp
import transformers.models.gpt2.modeling_gpt2  # noqa: F401
from torch.distributed import TCPStore

from student import trainer
from student.cli import main
from student.learner import Learner

_LONGEST_S = 120


def run(job: dict[str, Any]) -> list[int]:
    """Exit codes by rank. The meeting point is this process's, as it is torchrun's: its port is nobody else's."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [start(job, rank, store.port) for rank in range(job["world_size"])]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


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
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
    torch.set_num_threads(1)
    watch(rank, job["faults"], log_dir)
    sys.argv = ["teachonce-student", *job["argv"]]
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


if __name__ == "__main__":
    trainer._LOG_EVERY = 1
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
