"""Take a sample of a data set on the hub: the first rows of some of its files. Little else is downloaded."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.errors import NoSampleError
from pipeline.sources.corpus import hub_rows, load_hub
from pipeline.sources.rows import row_documents
from pipeline.sources.sample.fragments import Fragment, Reading, Sample
from pipeline.sources.sample.windows import Window

# Rows that are read together, and how many such groups of a data set; fewer rows when their texts are long.
_GROUP_ROWS, _NUM_GROUPS = 64, 32
_MOST_CHARS = 1 << 17
_LEAST_FILES = 4


def take_hub_sample(config: PrecomputeConfig, seen: set[str]) -> Sample | None:
    """Return the sample that --seed decides; None for so few rows that all may as well be read.

    seen: gets the names of the columns. Raises DataError, such as NoSampleError.
    """
    rows = load_hub(config)
    split = (rows.info.splits or {}).get("train")
    if split is None or not split.num_examples:
        raise NoSampleError(config.data, "the hub does not say how many rows its train split has")
    if split.num_examples <= 2 * _GROUP_ROWS * _NUM_GROUPS:
        return None
    files = _files(rows.num_shards, config.seed)
    num_groups = _NUM_GROUPS // len(files)
    readings = [reading for file in files for reading in _first_rows(config, rows, file, num_groups, seen)]
    readings = readings[: len(readings) // 2 * 2]
    weight = split.num_examples / _GROUP_ROWS / len(readings)
    return Sample(
        windows=[Window(stratum=i // 2, weight=weight, start=i, stop=i + 1) for i in range(len(readings))],
        readings=[[reading] for reading in readings],
        size=split.num_examples,
        unit="rows",
        num_files=rows.num_shards,
        num_read_files=len(files),
        beginnings=[config.data],
    )


def _files(num_files: int, seed: int) -> list[int]:
    """Return the files to read: two of each of some stretches, or all of a few."""
    if num_files < _LEAST_FILES:
        return list(range(num_files))
    num_strata, generator = min(num_files, _NUM_GROUPS) // 2, random.Random(seed)
    edges = [i * num_files // num_strata for i in range(num_strata + 1)]
    return [file for first, end in itertools.pairwise(edges) for file in sorted(generator.sample(range(first, end), 2))]


def _first_rows(config: PrecomputeConfig, rows: Any, file: int, num_groups: int, seen: set[str]) -> Iterator[Reading]:
    """Yield groups of the first rows of a file."""
    names, first_rows = hub_rows(config, rows, file)
    seen.update(names)
    remaining = iter(first_rows)
    for _ in range(num_groups):
        group = list(_some(remaining))
        if not group:
            return
        seen.update(*group)
        open_rows = functools.partial(_as_rows, group)
        place = f"{config.data}, file {file}"
        documents = row_documents(config, place, open_rows, is_beginning=False, is_end=False)
        yield Reading(fragments=[Fragment(document=document) for document in documents], num_bytes=len(group))


def _as_rows(rows: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    return [], rows


def _some(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the next rows of a group. The one that makes it too long is its last."""
    num_chars = 0
    for row in itertools.islice(rows, _GROUP_ROWS):
        yield row
        num_chars += len(str(row))
        if num_chars > _MOST_CHARS:
            return
