"""Take a sample of a data source in seconds, however large it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import PrecomputeConfig
from pipeline.errors import ColumnError
from pipeline.sources.corpus import Corpus
from pipeline.sources.data_files import format_of
from pipeline.sources.sample.beginnings import is_compressed
from pipeline.sources.sample.files import Files
from pipeline.sources.sample.parts import Reading
from pipeline.sources.sample.windows import Line, Window, draw_windows

# Sources of fewer bytes are read whole. A byte of a compressed file or a table holds several of text.
_SMALL_BYTES, _SMALL_DENSE_BYTES = 4 << 20, 1 << 20
# Bytes to read from the beginnings of files that cannot be entered in the middle: of all together, of each at least.
_MOST_BEGINNING_BYTES, _LEAST_BEGINNING_BYTES = 64 << 20, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Windows of a source, and what was read of each. num_bytes: of the source, whose files are these.

    read_files: the files that were opened. beginnings: those of them of which only the beginning was read.
    """

    windows: Sequence[Window]
    readings: Sequence[Sequence[Reading]]
    num_bytes: int
    num_files: int
    read_files: Sequence[Path]
    beginnings: Sequence[Path]

    @property
    def read_bytes(self) -> float:
        """Bytes of the source that the sample stands in for."""
        return math.fsum(r.num_bytes / r.density for readings in self.readings for r in readings if r.density)


def take_sample(config: PrecomputeConfig, corpus: Corpus) -> Sample | None:
    """Return the sample of files that --seed decides; None for a small source, which may as well be read whole.

    Raises DataError.
    """
    line = Line(corpus.files)
    is_dense = any(is_compressed(file) or format_of(file) == "table" for file in corpus.files)
    if line.num_bytes <= (_SMALL_DENSE_BYTES if is_dense else _SMALL_BYTES):
        return None
    windows = draw_windows(line.num_bytes, config.seed)
    ranges = [(index, part) for index, window in enumerate(windows) for part in line.ranges(window)]
    paths = list(dict.fromkeys(part.path for _, part in ranges))
    files, beginnings = Files(config, _most_beginning_bytes(paths)), []
    readings: list[list[Reading]] = [[] for _ in windows]
    for path, parts in itertools.groupby(ranges, key=lambda found: found[1].path):
        with files.opened(path) as reader:
            for index, part in parts:
                readings[index].append(reader.read(part.start, part.stop))
        if not reader.is_whole:
            beginnings.append(path)
    _require_columns(config, files.seen)
    return Sample(
        windows=windows,
        readings=readings,
        num_bytes=line.num_bytes,
        num_files=len(corpus.files),
        read_files=paths,
        beginnings=beginnings,
    )


def _most_beginning_bytes(paths: Sequence[Path]) -> int:
    """Return how much to read of each file that cannot be entered in the middle."""
    num_such = sum(is_compressed(path) or format_of(path) == "json" for path in paths)
    return max(_MOST_BEGINNING_BYTES // max(num_such, 1), _LEAST_BEGINNING_BYTES)


def _require_columns(config: PrecomputeConfig, seen: Set[str]) -> None:
    """Raise ColumnError when rows were read and none has the columns of a document."""
    for flag, column in config.document_columns.items():
        if seen and column not in seen:
            raise ColumnError(config.data, column, f"not among {sorted(seen)}", flag)
