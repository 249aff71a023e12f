"""Read a JSON file that may hold anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.errors import UnusableModelError, first_line


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model; raise UnusableModelError, which names the file, when it is none."""
    try:
        content = json.loads(path.read_bytes().decode(), object_hook=_special_float)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UnusableModelError(f"{path.name} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise UnusableModelError(f"{path.name} holds {json.dumps(content)[:20]}, expected a JSON object")
    return content


def _special_float(content: dict[str, Any]) -> Any:
    """Return infinity or NaN for the object that transformers writes in its place, {"__float__": "Infinity"}."""
    return float(content["__float__"]) if content.keys() == {"__float__"} else content
