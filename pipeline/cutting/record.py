"""What is known of a cut: cut.json and the model card beside the weights, and the plan on the terminal."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.disk.json_files import read_json_object
from storage.errors import UnusableModelError
from storage.pages.markdown import inline_code

RECORD_NAME = "cut.json"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Number of parameters, tied ones once, and the bytes of their values."""

    num_parameters: int
    weights_bytes: int


@dataclass(frozen=True, kw_only=True)
class CutRecord:
    """A smaller model, what was kept of its teacher, and why. Written as cut.json.

    teacher: name, revision, architecture, licence (None when its card names none) and sha256 of weights. settings: the
    flags that decide what is kept. text: what showed what matters, and its tokens; None when nothing was measured.
    layers, neurons, heads: numbers of what is kept, of how many, and the importance that was measured (not stated of
    neurons, which are many); neurons and heads are None when all are kept.
    """

    teacher: dict[str, Any]
    settings: dict[str, Any]
    text: dict[str, Any] | None
    layers: dict[str, Any]
    neurons: dict[str, Any] | None
    heads: dict[str, Any] | None
    dtype: str
    before: Size
    after: Size
    software: dict[str, str]

    def to_json(self) -> str:
        """Return the content of cut.json, a field a line."""
        fields = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in dataclasses.asdict(self).items())
        return "{\n" + ",\n".join(fields) + "\n}\n"


def read_record(directory: Path) -> CutRecord | None:
    """Return the record in a directory, None without one that this version wrote."""
    try:
        stated = read_json_object(directory / RECORD_NAME)
        sizes = {name: Size(**stated[name]) for name in ("before", "after")}
        record = CutRecord(**(stated | sizes))
        model_card(record, RECORD_NAME)  # a record of which no card can be made is damaged
    except (UnusableModelError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return record


def render(record: CutRecord) -> str:
    """Return what is kept, parameters and bytes as text for the terminal."""
    layers, before, after = record.layers, record.before, record.after
    numbers = ", ".join(map(str, layers["kept"]))
    lines = [f"{'layers':<12}{len(layers['kept'])} of {layers['of']}: {numbers}"]
    if layers["importance"] is not None:
        influence = ", ".join(f"{value:.3f}" for value in layers["importance"])
        lines.append(f"{'importance':<12}of layers 0 to {layers['of'] - 1}: {influence}")
    for name, part in (("neurons", record.neurons), ("heads", record.heads)):
        if part is not None:
            lines.append(f"{name:<12}{len(part['kept'][0]):,} of {part['of']:,} in each layer")
    if record.text is not None:
        lines.append(f"{'text':<12}{record.text['num_tokens']:,} tokens of {_source(record.text)}")
    return "\n".join(
        [
            *lines,
            f"{'parameters':<12}{before.num_parameters:,} → {after.num_parameters:,}",
            f"{'bytes':<12}{before.weights_bytes:,} → {after.weights_bytes:,} of {record.dtype} weights",
        ]
    )


def model_card(record: CutRecord, title: str) -> str:
    """Return Markdown with YAML front matter (written as JSON, which is YAML)."""
    teacher = record.teacher
    header: dict[str, Any] = {"tags": ["teachonce", "pruned"], "library_name": "transformers"}
    if teacher["licence"]:
        header["license"] = teacher["licence"]
    name, architecture, sha256 = (inline_code(teacher[field]) for field in ("id", "architecture", "weights_sha256"))
    revision = f" revision {inline_code(teacher['revision'])}," if teacher["revision"] else ""
    return f"""---
{json.dumps(header, indent=1)}
---

# {inline_code(title)}

A beginning for a student, cut by teachonce out of {name} ({architecture},{revision}
sha256 of weights {sha256}).
Nothing was trained since, so it is worse than its teacher until a student learns from there.

- Licence of the teacher: {inline_code(teacher["licence"] or "not named by its card")}
- Command: {inline_code(command(record.settings, title))}

```
{render(record)}
```

`{RECORD_NAME}` lists what was kept and why.
"""


def command(settings: dict[str, Any], out: str) -> str:
    """Return the command line of a cut, without places of the machine that it ran on; out: the name of its --out."""
    flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items() if name != "teacher"]
    return shlex.join(["teachonce-cut", settings["teacher"], *itertools.chain(*flags), "--out", out])


def _source(text: dict[str, Any]) -> str:
    return f"the cache {text['cache']}" if "cache" in text else str(text["data"])
