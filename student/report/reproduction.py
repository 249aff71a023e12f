"""What the training cost, and all that is needed to reproduce it."""

from __future__ import annotations

import dataclasses
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from storage.disk.hashing import sha256_file
from storage.pages.markup import Markup, element, join
from storage.pages.numbers import ABSENT, duration, size, whole
from storage.pages.page import note
from storage.pages.tables import Cell, facts, table
from storage.reading.cache import Cache
from storage.records.manifest import MANIFEST_NAME
from storage.report.cache_page import code, commands_block
from student.config import LoraConfig, MixConfig, TrainConfig
from student.report.runs import Run
from student.run_record import is_of_other_rows, stated_mix
from student.training.objective import has_targets

_NESTED = {"mix": MixConfig, "lora": LoraConfig}
_PACKAGES = ("teachonce", "torch", "transformers", "pyarrow")


def cost_table(cache: Cache, runs: Sequence[Run]) -> Markup:
    """Return the bytes of the cache, and steps, tokens and time of each training."""
    cache_bytes = sum(shard.shard_bytes for shard in cache.manifest.shards)
    rows: list[list[Cell]] = []
    for run in runs:
        seconds, tokens, steps = map(run.log.last.get, ("seconds", "tokens_seen", "step"))
        rate = tokens / seconds if tokens is not None and seconds else None
        rows.append([run.name, whole(steps), whole(tokens), duration(seconds), whole(rate)])
    return join(
        [
            element("p", f"The cache takes {size(cache_bytes)}. It was made once and serves any number of students."),
            table(
                ["Training of", "steps", "tokens read", "time", "tokens/s"], rows, label="Tokens and time of training"
            ),
            note(
                f"As each run logged it, evaluations and checkpoints included; {ABSENT} where the log does not say. "
                "What the teacher's run took is not in a cache."
            ),
        ]
    )


def reproduction(cache: Cache, cache_path: str, runs: Sequence[Run], out: Path) -> Markup:
    """Return versions, hashes, settings, and the commands to run."""
    identity = cache.identity
    pairs: list[tuple[str, Cell]] = [
        ("Teacher", identity.teacher["id"]),
        ("sha256 of its weights", code(identity.teacher.get("weights_sha256"))),
        ("Text", identity.data["source"]),
        ("sha256 of the cache's manifest", code(sha256_file(cache.path / MANIFEST_NAME))),
        ("Report made with", versions()),
    ]
    strangers = [run.name for run in runs if is_of_other_rows(run.settings, cache)]
    has_candidates = has_targets(cache, "beams")
    lines = [
        train_line(run, cache_path, has_candidates=has_candidates)
        for run in runs
        if run.settings and run.name not in strangers
    ]
    directories = " ".join(shlex.quote(str(run.directory)) for run in runs)
    lines.append(
        f"teachonce-student report {directories} --cache {shlex.quote(cache_path)} --out {shlex.quote(str(out))}"
    )
    return join(
        [
            note(
                f"Trained on other rows than this cache's, perhaps on a part of them: {', '.join(strangers)}. "
                "What is held out here may be what they learnt from, and no line here makes them again."
            )
            if strangers
            else None,
            facts(pairs),
            commands_block("\n".join(lines)),
            *[_settings(run) for run in runs],
        ]
    )


def train_line(run: Run, cache_path: str, *, has_candidates: bool) -> str:
    """Return the command that trains a student again, with the settings that differ from the defaults."""
    flags = []
    settings = {"dropout": None} | run.settings  # runs of earlier versions took the dropout of the student's config
    if has_candidates:
        settings |= {"mix": stated_mix(run.settings)}
    for field in dataclasses.fields(TrainConfig):
        if field.name in _NESTED:
            flags += _changed(_NESTED[field.name], settings.get(field.name) or {}, f"--{field.name}.")
        elif field.name in settings:
            flags += _changed(TrainConfig, {field.name: settings[field.name]}, "--")
    return shlex.join(["teachonce-student", "train", cache_path, "--out", str(run.directory), *flags])


def _changed(config: type, settings: dict[str, Any], prefix: str) -> list[str]:
    flags = []
    for field in dataclasses.fields(config):
        if field.name in settings and settings[field.name] != field.default:
            value = settings[field.name]
            flags += [f"{prefix}{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


def versions() -> str:
    """Return the versions of Python and of the packages that the figures depend on."""
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _settings(run: Run) -> Markup:
    if not run.settings:
        return note(f"{run.name} has no run.json: it was not trained by teachonce-student train.")
    pairs: list[tuple[str, Cell]] = [
        (name, code(value)) for name, value in sorted(run.settings.items()) if name != "teacher"
    ]
    return element("details", element("summary", f"Settings of {run.name}"), facts(pairs))
