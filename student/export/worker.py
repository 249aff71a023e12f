"""Run one exported file in a process that does nothing else, and answer requests about it.

    python -m student.export.worker PATH

The process first writes a line of JSON with the runtime's name. Then it reads one request per line of standard input,
as JSON. The answer to {"ids": […]} is a line of JSON with the shape [T, V], followed by the bytes of T · V float32
logits. The answer to {"prompt_ids": […], "num_new": N} is a line of JSON with the fields of Speed. The answer to
{"text": …} is a line of JSON with its ids, by the tokenizer in the file.
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

from student.export.readers import Reader, TextReader, greedy_ids, runtime_of

_ROUNDS = 3
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed and memory of a model that generates one token after the other on one thread.

    tokens_per_second: of the fastest of three rounds.
    resident_bytes: peak resident memory of the whole process.
    library_bytes: the same before the model was opened, which is that of Python and the runtime.
    Both are None where the system does not say (other systems than Linux).
    """

    tokens_per_second: float
    resident_bytes: int | None
    library_bytes: int | None


def main() -> None:
    """Serve requests until standard input ends."""
    path = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print to standard output, which the answers need
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
        elif "text" in request:
            assert isinstance(reader, TextReader)
            _answer(answers, {"ids": reader.tokenize(request["text"])})
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
    """Return the new tokens per second of the fastest round after a warm-up. The time includes reading the prompt."""
    seconds = []
    for _ in range(1 + _ROUNDS):
        started = time.perf_counter()
        greedy_ids(reader, prompt_ids, num_new)
        seconds.append(time.perf_counter() - started)
    return num_new / min(seconds[1:])


def _peak_bytes() -> int | None:
    """Return the peak resident memory of this process. getrusage would also count the memory of its parent."""
    if not _STATUS.is_file():
        return None
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
