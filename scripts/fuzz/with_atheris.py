"""Fuzz with atheris, which guides the mutations by the coverage of storage/.

atheris must observe the import of storage, so this module does not import storage before.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path

from scripts.fuzz.config import SECONDS_PER_INPUT, FuzzConfig, Report, copy_cache

_MOST_INPUT_BYTES = 1 << 16
_TRIES_PER_NOTE = 50


def fuzz(config: FuzzConfig, work: Path) -> Report:
    """Read mutated inputs in a separate process until one fails or the time is up."""
    config.failures.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(config, work))
    process.start()
    process.join()
    log = (work / "log").read_text(errors="replace")
    executed = re.findall(r"stat::number_of_executed_units: (\d+)|^#(\d+)", log, flags=re.MULTILINE)
    report = Report(
        num_inputs=max((int(a or b) for a, b in executed), default=0),
        outcomes=Counter(json.loads((work / "outcomes.json").read_text())),
        coverage=", ".join(re.findall(r"cov: \d+ ft: \d+ corp: \d+", log)[-1:]),
    )
    if process.exitcode:
        said = [line for line in log.splitlines() if not re.match(r"(#\d+)?\s*(REDUCE|NEW|pulse|INITED|READ)", line)]
        report.failure = f"exit code {process.exitcode}\n" + "\n".join(said[-40:])
    return report


def _run(config: FuzzConfig, work: Path) -> None:
    atheris = importlib.import_module("atheris")
    log = os.open(work / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with atheris.instrument_imports(include=["storage"]):
        from scripts.fuzz.targets import make_target
    target = make_target(config.target, copy_cache(config.cache, work / "cache"))
    corpus, outcomes = work / "corpus", Counter[str]()
    corpus.mkdir()
    for index, seed in enumerate(target.seeds):
        (corpus / str(index)).write_bytes(seed)

    def note() -> None:
        (work / "outcomes.json").write_text(json.dumps(outcomes))

    def read(data: bytes) -> None:
        outcome = target.outcome(data)
        outcomes[outcome] += 1
        if outcomes[outcome] == 1 or outcomes.total() % _TRIES_PER_NOTE == 0:
            note()

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = target.mutate(data, rng) if rng.random() < 0.7 else atheris.Mutate(data, most_bytes)
        return bytes(changed[:most_bytes])

    note()
    atheris.Setup([sys.argv[0], *_flags(config), str(corpus)], read, custom_mutator=mutate)
    atheris.Fuzz()


def _flags(config: FuzzConfig) -> list[str]:
    """Return the flags of libFuzzer."""
    settings = {
        "max_total_time": max(1, round(config.seconds)),
        "seed": config.seed + 1,  # libFuzzer reads 0 as a random seed
        "timeout": round(SECONDS_PER_INPUT),
        "max_len": _MOST_INPUT_BYTES,
        "rss_limit_mb": 4096,
        "print_final_stats": 1,
        "artifact_prefix": f"{config.failures.absolute()}/{config.target}-",
    }
    return [f"-{name}={value}" for name, value in settings.items()]
