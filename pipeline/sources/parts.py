"""Divide data files into parts, which are a pure function of the files and the settings.

Large files are cut where that costs nothing: plain text and JSON lines at bytes, Parquet at row groups, Arrow at record
batches. Compressed text can only be read in order, so such a file is never cut. Small files share a part.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import PrecomputeConfig
from pipeline.sources.data_files import format_of, is_compressed, place_of
from pipeline.sources.documents import Document, Part
from pipeline.sources.json_rows import json_ranges, json_rows
from pipeline.sources.plain_text import TextRange, text_documents, text_ranges
from pipeline.sources.rows import UNREADABLE, columns_of, row_documents
from pipeline.sources.tables import TableRange, table_ranges, table_rows

# A part takes seconds to tokenize. Of more text than these two allow, parts are larger.
PART_BYTES = 1 << 24
_MOST_PARTS = 1 << 12


@dataclass(frozen=True, kw_only=True)
class _Piece(Part):
    """A file or a range of one. num_bytes: of the file; of a range, about those that a part has."""

    num_bytes: int
    is_beginning: bool = True


def file_parts(config: PrecomputeConfig, files: Sequence[Path], *, splits_documents: bool) -> list[Part]:
    """Return the parts of files, which together give every document in order.

    splits_documents: whether a part may end inside a plain text that no separator divides.
    """
    sizes = [file.stat().st_size for file in files]
    part_bytes = max(PART_BYTES, sum(sizes) // _MOST_PARTS)
    joined: list[list[_Piece]] = []
    filled = 0
    for file, num_bytes in zip(files, sizes, strict=True):
        for piece in _pieces(config, file, num_bytes, part_bytes, splits_documents=splits_documents):
            if not joined or filled >= part_bytes or not piece.is_beginning:
                joined.append([])
                filled = 0
            joined[-1].append(piece)
            filled += piece.num_bytes
    return [_join(pieces) for pieces in joined]


def _join(pieces: list[_Piece]) -> Part:
    def documents() -> Iterator[Document]:
        return itertools.chain.from_iterable(piece.documents() for piece in pieces)

    return Part(documents=documents)


def _pieces(
    config: PrecomputeConfig, file: Path, num_bytes: int, part_bytes: int, *, splits_documents: bool
) -> list[_Piece]:
    """Return the pieces of a file. One that cannot be divided is one piece, whose reader says what is wrong with it."""
    num_pieces = 1 if is_compressed(file) else max(1, num_bytes // part_bytes)
    wished = [index * num_bytes // num_pieces for index in range(1, num_pieces)]
    match format_of(file):
        case "text":
            separator = config.document_separator
            texts = text_ranges(file, separator, wished, splits_documents=splits_documents) if wished else [TextRange()]
            found = [(text.start, functools.partial(text_documents, file, separator, text)) for text in texts]
        case "json":
            lines = json_ranges(file, wished) if wished else [(0, None)]
            found = [(start, _json_documents(config, file, start, stop)) for start, stop in lines]
        case _:
            found = [(table.start, _table_documents(config, file, table)) for table in _table_ranges(file, part_bytes)]
    return [
        _Piece(
            documents=documents,
            num_bytes=num_bytes if len(found) == 1 else part_bytes,
            is_beginning=start == 0,
        )
        for start, documents in found
    ]


def _json_documents(
    config: PrecomputeConfig, file: Path, start: int, stop: int | None
) -> functools.partial[Iterator[Document]]:
    return functools.partial(
        row_documents,
        config,
        place_of(file, start),
        lambda: ([], json_rows(file, start, stop)),
        is_beginning=start == 0,
        is_end=stop is None,
    )


def _table_documents(config: PrecomputeConfig, file: Path, table: TableRange) -> functools.partial[Iterator[Document]]:
    open_rows = functools.partial(table_rows, file, columns_of(config), table.start, table.stop)
    return functools.partial(row_documents, config, str(file), open_rows, first_row=table.first_row)


def _table_ranges(file: Path, part_bytes: int) -> list[TableRange]:
    try:
        return table_ranges(file, part_bytes)
    except UNREADABLE:
        return [TableRange()]
