"""Find the data files below a directory. Leave out what is no data, and say which files cannot be read."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import NoSuchDataError
from pipeline.sources.data_files import UNREAD, format_of, stem_of, suffix_of

# Texts and records that describe the data beside them.
_DESCRIPTIONS = {"readme", "license", "licence", "copying", "notice", "citation"}
_RECORDS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NAMES_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """Data files sorted by path, and files that look like data and cannot be read."""

    files: list[Path]
    unread: list[Path]

    def describe_unread(self, directory: Path) -> str:
        """Return one line about the files that cannot be read."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(map(_kind_of, self.unread)).items()))
        names = ", ".join(str(path.relative_to(directory)) for path in self.unread[:_NAMES_TOLD])
        more = ", …" if len(self.unread) > _NAMES_TOLD else ""
        return f"{directory}: left out {kinds} ({names}{more}): no text, JSON, Parquet or Arrow file that can be read"


def find_below(directory: Path) -> FoundFiles:
    """Return the data files below a directory.

    Leave out hidden files and folders, macOS leftovers, Markdown, and files that describe the data. Follow links to
    directories, and read each directory once. Of data that `datasets` saved, take the files that its record names; of
    several splits, take train. Raises NoSuchDataError when a directory or a record cannot be read: its text would be
    missing without notice.
    """
    found, unread = [], []
    for file in sorted(_files_below(directory)):
        if _is_data(file) and file.is_file():
            found.append(file)
        elif _kind_of(file) in UNREAD or (_is_data(file) and file.is_symlink()):
            unread.append(file)
    return FoundFiles(files=found, unread=unread)


def _files_below(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise NoSuchDataError(str(error.filename), f"cannot be read ({error.strerror})") from error

    seen: set[str] = set()
    for parent, folders, names in os.walk(directory, onerror=refuse, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(
            (name for name in folders if _is_shown(name)), key=lambda name: (os.path.islink(Path(parent, name)), name)
        )
        if "dataset_dict.json" in names:
            folders[:], names = [_split_to_read(Path(parent))], []
        elif {"state.json", "dataset_info.json"} <= set(names):
            folders[:], names = [], _saved_files(Path(parent))
        yield from (Path(parent, name) for name in names if _is_shown(name))


def _split_to_read(directory: Path) -> str:
    splits = _record(directory / "dataset_dict.json", lambda record: [str(split) for split in record["splits"]])
    if "train" in splits:
        return "train"
    if len(splits) != 1:
        reason = f"holds the splits {', '.join(splits)} and no train; name one, as {directory}/SPLIT"
        raise NoSuchDataError(str(directory), reason)
    return splits[0]


def _saved_files(directory: Path) -> list[str]:
    """Return the names of a saved data set's files. Others beside them are what later work on it left there."""
    path = directory / "state.json"
    names = _record(path, lambda record: [str(file["filename"]) for file in record["_data_files"]])
    for name in names:
        if not (directory / name).is_file():
            raise NoSuchDataError(str(directory / name), "is missing, and state.json beside it names it")
    return names


def _record(path: Path, read: Callable[[Any], list[str]]) -> list[str]:
    try:
        return read(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoSuchDataError(str(path), f"is no record of saved data ({error!r})") from error


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_data(file: Path) -> bool:
    """Return whether to read this file of a directory. Markdown describes the other files."""
    kind = format_of(file)
    if kind is None or suffix_of(file) == ".md" or file.name.lower() in _RECORDS:
        return False
    return not (kind == "text" and stem_of(file) in _DESCRIPTIONS)


def _kind_of(file: Path) -> str:
    """Return the last suffix that names a kind of file which cannot be read, else the last one without compression."""
    return file.suffix.lower() if file.suffix.lower() in UNREAD else suffix_of(file)
