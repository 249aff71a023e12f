"""Write the docstrings of the standard library of the Python that runs this, for demos that must not depend on it.

    python -m scripts.teacher.stdlib_text scripts/demo/text/stdlib.jsonl.zst

A row is a module. The rows are in order of their hashes, so that the first of them are of every kind. Tests and
programs are left out.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import tyro
import zstandard

from pipeline.sources.stdlib_corpus import module_docstrings
from storage.command import run_command
from storage.disk.files import write_file

_LEFT_OUT = {"site-packages", "dist-packages", "lib2to3", "test", "tests", "idlelib", "turtledemo"}
_LEVEL = 19


def main() -> None:
    """Run the command."""
    run_command(lambda: write_stdlib_text(tyro.cli(Path, prog="stdlib_text", description=__doc__)))


def write_stdlib_text(out: Path) -> int:
    """Write the rows to `out`, a .jsonl.zst."""
    texts = sorted(_texts(), key=lambda text: hashlib.sha256(text.encode()).digest())
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    write_file(out, zstandard.ZstdCompressor(level=_LEVEL).compress(rows.encode()))
    return 0


def _texts() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in root.rglob("*.py"):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            text = "\n\n".join(module_docstrings(path))
            if text:
                yield f"{text}\n"


if __name__ == "__main__":
    main()
