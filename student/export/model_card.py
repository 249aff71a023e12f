"""The README.md of an exported directory: the student's origin, and the measures of this export."""

from __future__ import annotations

import json
from typing import Any

from storage.pages.markdown import inline_code
from storage.reading.cache import Cache
from storage.records.identity import NOT_STATED
from student.export.trial import Trial


def model_card(run: dict[str, Any], cache: Cache | None, trial: Trial, title: str) -> str:
    """Return Markdown with YAML front matter (written as JSON, which is YAML).

    The card states data and licence when the student was trained on the rows of `cache`. Otherwise it says that they
    are not known. run: the student's run.json, {} without one.
    """
    data = data_of(run, cache)
    header: dict[str, Any] = {"tags": ["teachonce", "knowledge-distillation"], "library_name": trial.library}
    if data.get("licence"):
        header["license"] = data["licence"]
    return f"""---
{json.dumps(header, indent=1)}
---

# {inline_code(title)}

{_origin(run)}

{_data_lines(data)}

Exported as {trial.format}, quantisation {trial.quantize}, and run by {trial.runtime} on one thread before it was kept:

{trial.table()}

The student is the float32 original in PyTorch. Perplexity, top-1 agreement and KL(student‖exported) are over
{trial.agreement.num_targets:,} held-out tokens.
"""


def data_of(run: dict[str, Any], cache: Cache | None) -> dict[str, Any]:
    """Return what the cache says about its text if the student was trained on the cache's rows, {} otherwise."""
    return cache.identity.data if cache and run.get("cache_sha256") == cache.rows_sha256 else {}


def licences_of(data: dict[str, Any]) -> list[str]:
    """Return the licences of a text, [] when they are not known. A merged cache states one for each of its sources."""
    stated = data.get("licence")
    listed = stated if isinstance(stated, list) else [stated]
    licences = [licence for licence in listed if isinstance(licence, str)]
    return licences if len(licences) == len(listed) else []


def _origin(run: dict[str, Any]) -> str:
    teacher = run.get("teacher")
    if not isinstance(teacher, dict):
        return "No record of its training was found beside this model."
    described = (
        f"{inline_code(teacher.get('architecture'))}, {inline_code(teacher.get('num_parameters'))} parameters, "
        f"sha256 of weights {inline_code(teacher.get('weights_sha256'))}"
    )
    if teacher.get("architecture") == NOT_STATED:
        described = "not described: its targets were imported"
    rank = (run.get("lora") or {}).get("rank")
    adapted = f" by adapters of rank {inline_code(rank)}" if rank else ""
    return (
        f"Distilled by teachonce from {inline_code(teacher.get('id'))} ({described}) "
        f"in {inline_code(run.get('max_steps'))} steps{adapted}, preset {inline_code(run.get('preset'))}, "
        f"loss {inline_code(run.get('loss'))}."
    )


def _data_lines(data: dict[str, Any]) -> str:
    if not data:
        return "Data and their licence: not known; the cache that it was trained from was not at hand."
    return "\n".join(
        f"- Data: {inline_code(source.get('source'))}, "
        f"licence {inline_code(source.get('licence') or 'not stated by the source')}"
        for source in data.get("sources", [data])
    )
