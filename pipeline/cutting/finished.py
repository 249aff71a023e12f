"""What lies at --out already, and what a record says of a teacher that its weights do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import transformers

from pipeline.cutting.config import CutConfig
from pipeline.cutting.record import RECORD_NAME, CutRecord, read_record
from pipeline.errors import CutTakenError
from pipeline.teacher.loading import load_as_stored
from storage.errors import ConfigError, UnusableModelError
from storage.progress import tell
from storage.tensors.checkpoints.loading import load_checkpoint

_PLACES = ("teacher", "cache", "data")
_UNRECORDED = ("out", "device", "plan", "quiet")


def finished_cut(config: CutConfig) -> CutRecord | None:
    """Return the record of the cut at --out, None when nothing is there. Print that it is there already.

    Raises CutTakenError when something else is there, be it a cut with other settings or out of other weights, and
    ConfigError when it is the teacher, which nobody shall be told to remove.
    """
    if not config.out.exists() or (config.out.is_dir() and not any(config.out.iterdir())):
        return None
    if Path(config.teacher).is_dir() and config.out.samefile(config.teacher):
        raise ConfigError(f"--out {config.out}: is the teacher; name another directory")
    record = read_record(config.out)
    if record is None:
        raise CutTakenError(str(config.out), f"something without a {RECORD_NAME} of teachonce-cut is there")
    settings = recorded_settings(config)
    for name in sorted({*record.settings, *settings}):
        found, wanted = (
            "the default" if value is None else repr(value) for value in (record.settings.get(name), settings.get(name))
        )
        if found != wanted:
            raise CutTakenError(str(config.out), f"holds a cut with {name} {found}, and now it is {wanted}")
    _, weights_sha256 = load_as_stored(config.run)
    if record.teacher["weights_sha256"] != weights_sha256:
        raise CutTakenError(str(config.out), f"holds a cut out of other weights than {config.teacher} has now")
    try:
        load_checkpoint(transformers, str(config.out), dtype="auto", local_files_only=True)
    except UnusableModelError as error:
        raise CutTakenError(str(config.out), f"holds a cut that does not load ({error.reason})") from error
    tell(f"{config.out}: is there already")
    return record


def recorded_settings(config: CutConfig) -> dict[str, Any]:
    """Return the flags that decide what is kept, where they are not their defaults; of places only the name."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    settings = {
        name: value for name, value in vars(config).items() if name not in _UNRECORDED and value != defaults[name]
    }
    return {name: _name(value) if name in _PLACES else value for name, value in settings.items()}


def licence_of(teacher: str, revision: str | None) -> str | None:
    """Return the licence that the teacher's card names, None when there is no card or it names none."""
    import huggingface_hub
    import yaml

    try:
        is_directory = Path(teacher).is_dir()
        card = Path(teacher, "README.md") if is_directory else _download_card(teacher, revision)
        facts = huggingface_hub.metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError, huggingface_hub.errors.HfHubHTTPError):
        return None
    licence = facts.get("license")
    return licence if isinstance(licence, str) else None


def _download_card(teacher: str, revision: str | None) -> Path:
    import huggingface_hub

    return Path(huggingface_hub.hf_hub_download(teacher, "README.md", revision=revision))


def _name(place: str) -> str:
    return Path(place).resolve().name if Path(place).exists() else place
