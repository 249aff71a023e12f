"""Fuzz all code that reads a cache: records, shards, streams and packed caches, with matching checksums.

    python -m scripts.fuzz --target arrow --seconds 60
    python -m scripts.fuzz --target arrow --reproduce FILE

With atheris (`pip install atheris`) the coverage of storage/ guides the mutations. Without it the mutations of the same
inputs are random. An input may be read, and then all rules of the format hold, or be refused with an error class of
this project. Anything else is a failure: another exception, a crash of a library, more than a minute, unbounded memory.

An input of `manifest` and `commit` is the JSON of the record. An input of `arrow` and `stream` is a byte that chooses
the kind, then the bytes of a shard. An input of `archive` is a byte, then the bytes of an archive, or, when the byte is
odd, of the tar inside it.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import tyro

from scripts.fuzz.config import FuzzConfig, Report, copy_cache


def main() -> int:
    """Run the target. Return 1 when an input failed, else 0."""
    config = tyro.cli(FuzzConfig, prog="python -m scripts.fuzz", description=__doc__)
    with tempfile.TemporaryDirectory(prefix="teachonce-fuzz-") as directory:
        if config.reproduce:
            from scripts.fuzz.targets import make_target

            target = make_target(config.target, copy_cache(config.cache, Path(directory)))
            print(target.outcome(config.reproduce.read_bytes()))
            return 0
        report = _fuzz(config, Path(directory))
    outcomes = ", ".join(f"{name} {count}" for name, count in report.outcomes.most_common())
    print(f"{config.target}: {report.num_inputs} inputs, {len(report.outcomes)} outcomes: {outcomes} {report.coverage}")
    if report.failure:
        print(f"{config.target}: FAILED, inputs in {config.failures}: {report.failure}", file=sys.stderr)
        return 1
    return 0


def _fuzz(config: FuzzConfig, work: Path) -> Report:
    """Fuzz with atheris where it is installed. atheris must observe the first import of storage."""
    if importlib.util.find_spec("atheris") is not None:
        from scripts.fuzz import with_atheris

        return with_atheris.fuzz(config, work)
    from scripts.fuzz import at_random

    print("atheris is not installed (pip install atheris): mutations are not guided", file=sys.stderr)
    return at_random.fuzz(config, work)


if __name__ == "__main__":
    sys.exit(main())
