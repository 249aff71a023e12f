"""What decides the weights of a student, and run.json, in which training writes it down.

A preset that is a file or a directory counts by its content: under another path it is the same, edited it is another.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from storage.disk.hashing import sha256_file
from storage.reading.cache import Cache
from student.errors import CheckpointError, PresetChangedError, RunMismatchError
from student.model.presets import PRESETS, read_config_file

RUN_NAME = "run.json"
# The fact that states the ids before every text that the student was trained on.
BEGINNING = "beginning_ids"
_PRESET_SHA256 = "preset_sha256"
# Facts that hold several settings; null in runs of versions that had none of them.
_GROUPS = ("mix", "lora", "teacher")
# Weight of candidates in runs of earlier versions, which state no weight that was not given.
_EARLIER_BEAMS_WEIGHT = 0.25
# What a checkpoint directory's student is made of. The rest, such as logs and the tokenizer, does not decide weights.
_STUDENT_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "*.index.json", "*.safetensors", "*.bin",
)  # fmt: skip


def preset_facts(preset: str) -> dict[str, str | None]:
    """Return the facts about --preset by which a run is told from another.

    preset: name of a preset, path of a config .json, or directory of a checkpoint.

    The sha256 is over what a config states or over a checkpoint's config and weights; None for a preset's name and
    where nothing is. Raise UnknownPresetError for a config that cannot be read.
    """
    return {"preset": preset, _PRESET_SHA256: _preset_sha256(preset)}


def _preset_sha256(preset: str) -> str | None:
    path = Path(preset)
    if preset in PRESETS or not path.exists():
        return None
    if path.suffix == ".json":
        # Earlier versions read a null as a setting that is not stated. Their runs go on, so the hash leaves nulls out.
        stated = {name: value for name, value in read_config_file(preset).items() if value is not None}
        content = json.dumps(stated, sort_keys=True)
    else:
        files = {file for pattern in _STUDENT_FILES for file in path.glob(pattern) if file.is_file()}
        content = "".join(f"{file.name} {sha256_file(file)}\n" for file in sorted(files))
    return hashlib.sha256(content.encode()).hexdigest()


def require_same_facts(out: Path, begun: dict[str, Any], run: dict[str, Any]) -> None:
    """Raise RunMismatchError or PresetChangedError when `run` is not the run that began in `out`.

    Earlier versions noted the preset's name alone. Then, and where nothing is at that path now, the name decides.
    """
    begun, run = begun | {"mix": stated_mix(begun)}, run | {"mix": stated_mix(run)}
    is_known = bool(begun.get(_PRESET_SHA256) and run.get(_PRESET_SHA256))
    if is_known and begun[_PRESET_SHA256] != run[_PRESET_SHA256]:
        raise PresetChangedError(str(out), begun["preset"], run["preset"])
    for field in sorted((begun.keys() | run.keys()) - {_PRESET_SHA256} - ({"preset"} if is_known else set())):
        if begun.get(field) != run.get(field):
            raise RunMismatchError(str(out), field, begun.get(field), run.get(field))


def stated_mix(run: dict[str, Any]) -> dict[str, Any]:
    """Return the weights that a run states, {} for none; that of candidates as earlier versions meant it."""
    mix: Any = run.get("mix")
    if not isinstance(mix, dict):
        return {}
    return mix | {"beams": _EARLIER_BEAMS_WEIGHT} if mix.get("beams") is None else mix


def is_of_other_rows(run: dict[str, Any], cache: Cache) -> bool:
    """Whether run.json says that a student was trained on other rows than the cache's; False if it does not say."""
    return run.get("cache_sha256") not in (None, cache.rows_sha256)


def read_run(student: Path) -> dict[str, Any]:
    """Return the content of run.json, {} for a student without one. Raise CheckpointError when it is damaged."""
    path = student / RUN_NAME
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), str(error)) from error
    if not isinstance(run, dict):
        raise CheckpointError(str(path), "not a JSON object")
    for name in _GROUPS:
        if not isinstance(run.get(name), dict | None):
            raise CheckpointError(str(path), f"its {name} is not a JSON object")
    return run
