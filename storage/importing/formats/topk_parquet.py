"""topk-parquet: Parquet or Arrow with the token ids of a text, and a list of ids and of log-probabilities per position.

Shape legend: L tokens, E entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.importing.config import ImportConfig
from storage.importing.errors import ImportRowError, MisalignedRowError
from storage.importing.formats.tables import flat_list, nested_list, table_rows, wanted_tokens
from storage.importing.source_text import Bools, Int64s, SourceText


def texts(path: Path, config: ImportConfig) -> Iterator[SourceText]:
    """Yield the texts of a file. Raise ImportRowError or ImportSourceError."""
    names = (config.input_ids_column, config.ids_column, config.logprobs_column)
    labels = config.labels_column
    for where, row in table_rows(path, [*names, *([labels] if labels else [])]):
        input_ids = flat_list(where, names[0], row[names[0]], np.int64)
        size, ids = nested_list(where, names[1], row[names[1]], np.int64)
        logprob_size, logprobs = nested_list(where, names[2], row[names[2]], np.float64)
        _require_same_sizes(where, names, size, logprob_size)
        is_wanted = wanted_tokens(where, labels, row, len(input_ids))
        align = {"next": about_next, "same": _about_same}[config.alignment]
        yield align(where, input_ids, size, ids, logprobs, is_wanted)


def _require_same_sizes(where: str, names: tuple[str, ...], ids_size: Int64s, logprobs_size: Int64s) -> None:
    if len(ids_size) != len(logprobs_size):
        raise MisalignedRowError(
            where, f"{names[1]} has {len(ids_size)} positions, {names[2]} has {len(logprobs_size)}, expected as many"
        )
    if len(wrong := np.flatnonzero(ids_size != logprobs_size)):
        p = wrong[0]
        raise MisalignedRowError(
            where, f"position {p}: {ids_size[p]} {names[1]} and {logprobs_size[p]} {names[2]}, expected as many"
        )


def about_next(
    where: str, input_ids: Int64s, size: Int64s, ids: Int64s, logprobs: NDArray[np.float64], is_wanted_L: Bools
) -> SourceText:
    """Return a text whose lists at position t are about token t + 1. The last token may have a list, about no token.

    is_wanted_L: whether each token is to be taught. Raise MisalignedRowError for any other number of lists.
    """
    num_tokens = len(input_ids)
    if len(size) not in (num_tokens, num_tokens - 1) or not num_tokens:
        raise MisalignedRowError(
            where,
            f"has lists at {len(size)} positions for {num_tokens} tokens, expected {num_tokens} or {num_tokens - 1} "
            "with --alignment next",
        )
    num_entries = int(size[: num_tokens - 1].sum())
    return _text(
        where, 0, input_ids, size[: num_tokens - 1], ids[:num_entries], logprobs[:num_entries], is_wanted_L[1:]
    )


def _about_same(
    where: str, input_ids: Int64s, size: Int64s, ids: Int64s, logprobs: NDArray[np.float64], is_wanted_L: Bools
) -> SourceText:
    """Return a text whose lists at position t are about token t, so that the first has none."""
    if len(size) != len(input_ids) or not len(size):
        raise MisalignedRowError(
            where,
            f"has lists at {len(size)} positions for {len(input_ids)} tokens, expected as many with --alignment same",
        )
    if size[0]:
        raise ImportRowError(
            where,
            f"position 0: lists {size[0]} ids, expected none with --alignment same: nothing precedes the first token",
        )
    return _text(where, 1, input_ids, size[1:], ids, logprobs, is_wanted_L[1:])


def _text(
    where: str, first_position: int, input_ids: Int64s, size: Int64s, ids: Int64s, logprobs: Any, is_wanted: Bools
) -> SourceText:
    return SourceText(
        where=where,
        first_position=first_position,
        input_ids=input_ids,
        size=size,
        ids=ids,
        logprobs=logprobs,
        is_wanted=is_wanted,
        label_logprob=np.full(len(size), np.nan),
        lists_labels=False,
    )
