"""Tokenize a made-up text as precompute does: in this process, or in processes of one thread that share it."""

from __future__ import annotations

import functools
import json
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pipeline.config import PrecomputeConfig
from pipeline.corpus.tokenization import tokenize_corpus
from pipeline.corpus.tokenizer_calls import use_threads
from pipeline.sources import parts
from pipeline.sources.corpus import open_corpus
from scripts.support.measure import peak_extra_bytes

_WORDS_PER_ROW = 300
_FORK = multiprocessing.get_context("fork")


def write_rows(path: Path, num_bytes: int) -> Path:
    """Write JSON lines of random words, at least num_bytes."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(5000)]
    with path.open("w") as file:
        while file.tell() < num_bytes:
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=_WORDS_PER_ROW))}) + "\n")
    return path


def tokenize(text: Path, tokenizer_dir: Path, work_dir: Path, part_bytes: int) -> None:
    """Tokenize a file in parts of part_bytes into a new directory below `work_dir`, with whoever else does so."""
    parts.PART_BYTES = part_bytes
    config = PrecomputeConfig(teacher="unused", data=str(text), out=work_dir, block_size=512, quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenize_corpus(
        open_corpus(config),
        tokenizer,
        config,
        vocab_size=len(tokenizer),
        context_length=1024,
        work_dir=work_dir / "tokens",
    )


def tokenize_together(num_processes: int, *arguments: Any) -> None:
    """Call `tokenize` in processes of one thread each that share the work. Return when every one has the tokens.

    They are forks: everything is imported, and a tokenizer of one thread needs none of the threads that a fork lacks.
    """
    processes = [_FORK.Process(target=_tokenize_in_one_thread, args=arguments) for _ in range(num_processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * num_processes


def tokenizing_peak_bytes(*arguments: Any) -> int:
    """Return the peak memory that `tokenize` takes beyond what its process, a new fork with one thread, begins with."""
    with ProcessPoolExecutor(1, mp_context=_FORK) as executor:
        return executor.submit(peak_extra_bytes, functools.partial(_tokenize_in_one_thread, *arguments)).result()


def _tokenize_in_one_thread(*arguments: Any) -> None:
    use_threads(1)
    tokenize(*arguments)
