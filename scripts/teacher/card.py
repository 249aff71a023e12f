"""Write the model card of a teacher: what made it, its data with licences, and what it makes of unseen text."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.teacher.held_out import NEW_TOKENS, TEMPERATURE, HeldOut
from storage.disk.files import write_file


@dataclass(frozen=True, kw_only=True)
class TrainedTeacher:
    """What the card tells. sources: the packages that the text is from, if package_text wrote it."""

    line: str
    shape: str
    training: str
    sources: Sequence[dict[str, Any]]
    held_out: Sequence[HeldOut]
    continuations: Sequence[tuple[str, str]]


def write_card(directory: Path, teacher: TrainedTeacher) -> None:
    """Write README.md into the teacher's directory."""
    parts = [
        _HEAD,
        f"{teacher.shape}\n\n```bash\n{teacher.line}\n```\n\n{teacher.training}",
        _measured(teacher.held_out),
    ]
    parts += [_written(teacher.continuations), *([_data(teacher.sources)] if teacher.sources else [])]
    write_file(directory / "README.md", ("\n\n".join(parts) + "\n").encode())


_HEAD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# A small teacher

GPT-2's architecture and a byte-level BPE, trained from random weights on English about code. It is made to be distilled
in minutes, not to be right about anything."""


_DATA = """## Data

Docstrings of {num_packages} packages, as `scripts/teacher/package_text.py` chooses them: what reads as English, and
what no other of them says. {num_left_out} of their modules are left out because they share a run of 12 words with a
docstring of the standard library. With Python {python}:

```bash
pip install --no-deps --target build/packages PACKAGE==VERSION …  # those of the table
python -m scripts.teacher.package_text --packages build/packages --out build/docstrings.jsonl
```"""


def _measured(held_out: Sequence[HeldOut]) -> str:
    rows = [
        f"| {found.text} | {found.num_tokens:,} | {found.perplexity:.2f} | {found.bits_per_byte:.3f} |"
        for found in held_out
    ]
    head = "| text that it was not trained on | tokens | perplexity | bits per byte |\n|---|---|---|---|"
    return "\n".join(["## Held out", "", head, *rows])


def _written(continuations: Sequence[tuple[str, str]]) -> str:
    lines = [f"{prompt}█{text}".replace("\n", "⏎") for prompt, text in continuations]
    text = "\n".join(lines)
    return (
        f"## What it writes\n\nAt temperature {TEMPERATURE}, {NEW_TOKENS} tokens after each prompt (█), not selected; "
        f"⏎ is a new line.\n\n```text\n{text}\n```"
    )


def _data(sources: Sequence[dict[str, Any]]) -> str:
    left_out = sum(source["num_modules_like_stdlib"] for source in sources)
    rows = [
        f"| {source['name']} | {source['version']} | {source['licence']} | {source['num_chars']:,} |"
        for source in sources
    ]
    head = "| package | version | licence | characters |\n|---|---|---|---|"
    told = _DATA.format(num_packages=len(sources), num_left_out=left_out, python=platform.python_version())
    return "\n".join([told, "", head, *rows])
