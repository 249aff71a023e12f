"""Take a sample of a data source in seconds, however large it is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import PrecomputeConfig
from pipeline.errors import ColumnError, NoSampleError
from pipeline.sources.corpus import STDLIB, Corpus
from pipeline.sources.data_files import format_of, is_compressed
from pipeline.sources.sample.files import Files
from pipeline.sources.sample.fragments import Reading, Sample
from pipeline.sources.sample.hub import take_hub_sample
from pipeline.sources.sample.windows import Line, draw_windows

# Sources of fewer bytes are read whole. A byte of a compressed file or a table holds several of text.
_SMALL_BYTES, _SMALL_DENSE_BYTES = 4 << 20, 1 << 20
# Windows in which a row has to begin. Fewer differ too little to show how much they might.
_LEAST_FILLED = 8
# Bytes to read from the beginnings of files that cannot be entered in the middle: of all together, of each at least.
_MOST_BEGINNING_BYTES, _LEAST_BEGINNING_BYTES = 64 << 20, 1 << 20


def take_sample(config: PrecomputeConfig, corpus: Corpus) -> Sample | None:
    """Return the sample that --seed decides; None for a small source, which may as well be read whole.

    Raises DataError, such as NoSampleError.
    """
    seen: set[str] = set()
    sample = _file_sample(config, corpus.files, seen) if corpus.files else None
    if not corpus.files and config.data != STDLIB:
        sample = take_hub_sample(config, seen)
    for flag, column in config.document_columns.items():
        if seen and column not in seen:
            raise ColumnError(config.data, column, f"not among {sorted(seen)}", flag)
    if sample is not None:
        num_filled = sum(any(reading.fragments for reading in readings) for readings in sample.readings)
        if num_filled < min(_LEAST_FILLED, len(sample.windows)):
            reason = f"a row begins at {num_filled} of {len(sample.windows)} places, because rows are very long"
            raise NoSampleError(config.data, reason)
    return sample


def _file_sample(config: PrecomputeConfig, paths: Sequence[Path], seen: set[str]) -> Sample | None:
    """Return a sample of files. seen: gets the names of their columns."""
    line = Line(paths)
    is_dense = any(is_compressed(file) or format_of(file) == "table" for file in paths)
    if line.num_bytes <= (_SMALL_DENSE_BYTES if is_dense else _SMALL_BYTES):
        return None
    windows = draw_windows(line.stretches(), config.seed)
    ranges = [(index, part) for index, window in enumerate(windows) for part in line.ranges(window)]
    opened = list(dict.fromkeys(part.path for _, part in ranges))
    files, beginnings = Files(config, _most_beginning_bytes(opened), seen), []
    readings: list[list[Reading]] = [[] for _ in windows]
    for path, parts in itertools.groupby(ranges, key=lambda found: found[1].path):
        with files.opened(path) as reader:
            for index, part in parts:
                readings[index].append(reader.read(part.start, part.stop))
        if not reader.is_whole:
            beginnings.append(path.name)
    return Sample(
        windows=windows,
        readings=readings,
        size=line.num_bytes,
        num_files=len(paths),
        num_read_files=len(opened),
        beginnings=beginnings,
    )


def _most_beginning_bytes(paths: Sequence[Path]) -> int:
    """Return how much to read of each file that cannot be entered in the middle."""
    num_such = sum(is_compressed(path) or format_of(path) == "json" for path in paths)
    return max(_MOST_BEGINNING_BYTES // max(num_such, 1), _LEAST_BEGINNING_BYTES)
