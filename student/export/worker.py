"""Runs one exported file in a process that does nothing else, and answers requests about it.

    python -m student.export.worker PATH

reads a line of JSON per request on standard input. {"ids": […]} is answered by a line of JSON with the shape [T, V]
and then that many float32 logits; {"prompt_ids": […], "num_new": N} by a line with the fields of Speed. A line with
the runtime's name comes first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from student.export.readers import Reader, greedy_ids, runtime_of

_ROUNDS = 3
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast and how large a model is when it writes one token after the other, on one thread.

    tokens_per_second: of the fastest of three rounds. resident_bytes: most memory of the whole process;
    library_bytes: what of it Python and the runtime took before the model was opened. None where the system
    (other than Linux) does not tell.
    """

    tokens_per_second: float
    resident_bytes: int | None
    library_bytes: int | None


def main() -> None:
    """Serve requests until standard input ends."""
    path = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print
    runtime = runtime_of(path)
    library_bytes = _peak_bytes()
    reader = runtime.open(path)
    _answer(answers, {"runtime": runtime.name})
    for line in sys.stdin:
        request = json.loads(line)
        if "ids" in request:
            reader.reset()
            logits_TV = np.ascontiguousarray(reader.read(request["ids"]), dtype=np.float32)
            _answer(answers, {"shape": logits_TV.shape}, logits_TV.tobytes())
        else:
            tokens_per_second = _decoding_rate(reader, **request)
            speed = Speed(
                tokens_per_second=tokens_per_second, resident_bytes=_peak_bytes(), library_bytes=library_bytes
            )
            _answer(answers, asdict(speed))


def _answer(answers: BinaryIO, content: dict[str, object], data: bytes = b"") -> None:
    answers.write(json.dumps(content).encode() + b"\n" + data)
    answers.flush()


def _decoding_rate(reader: Reader, prompt_ids: Sequence[int], num_new: int) -> float:
    """Tokens per second, prompt included, after a round that warms up."""
    seconds = []
    for _ in range(1 + _ROUNDS):
        started = time.perf_counter()
        greedy_ids(reader, prompt_ids, num_new)
        seconds.append(time.perf_counter() - started)
    return num_new / min(seconds[1:])


def _peak_bytes() -> int | None:
    """Most resident memory of this process; getrusage would count that of its parent, too."""
    if not _STATUS.is_file():
        return None
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
