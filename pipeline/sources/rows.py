"""Turn rows into documents: texts, conversations or pairs, with the prompts beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zstandard

from pipeline.config import PrecomputeConfig
from pipeline.errors import ColumnError, NoSuchDataError
from pipeline.sources.documents import Document, Prompt
from pipeline.sources.turns import turns_of
from storage.errors import TeachonceError, first_line

# Single rows may lack the text column. Stop after this many rows if none has it: the name is probably wrong.
_MOST_ROWS_WITHOUT = 1000
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zstandard.ZstdError)
"""Errors that datasets and its parsers raise for files that are cut short, empty or of another format."""

OpenRows = Callable[[], tuple[list[str], Iterable[dict[str, Any]]]]
"""Returns the names of all columns (none when only the rows tell), and the rows. Raises what UNREADABLE lists."""


def columns_of(config: PrecomputeConfig) -> set[str]:
    """Return the names of the columns that a run reads."""
    return _prompt_columns(config).union(config.document_columns.values())


def row_documents(
    config: PrecomputeConfig,
    source: str,
    open_rows: OpenRows,
    *,
    first_row: int = 1,
    is_beginning: bool = True,
    is_end: bool = True,
) -> Iterator[Document]:
    """Yield a document for each row. Raises ColumnError or NoSuchDataError.

    first_row: number of the first of these rows, for messages. is_beginning, is_end: whether they are the first rows of
    their file, and the last ones. Rows in the middle may all lack a column that others have.
    """
    wanted = _prompt_columns(config)
    # A conversation or a pair has to be in every row, unless bad rows are skipped.
    most_without = 1 if config.marks_wanted and config.on_bad_row == "stop" else _MOST_ROWS_WITHOUT
    has_rows, must_have_all = False, is_beginning and is_end
    try:
        column_names, rows = open_rows()
        names = set(column_names)
        for number, row in enumerate(rows, first_row):
            has_rows = True
            names |= row.keys()
            is_last_try = is_beginning and number == most_without
            if is_last_try and not names.issuperset(config.document_columns.values()):
                must_have_all = True
                break
            turns, place = turns_of(config, row), f"{source}: row {number}"
            # With conversations and pairs, the tokenizer says which rows are bad: such rows may be skipped.
            prompts: dict[str, Any] = {
                c: row.get(c) if turns else _prompt(source, row, c, number, names) for c in wanted
            }
            pieces = [] if turns else [_text(config, source, row, number)]
            yield Document(pieces=pieces, prompts=prompts, turns=turns, place=place)
        for flag, column in config.document_columns.items():
            if must_have_all and has_rows and column not in names:
                raise ColumnError(source, column, f"not among {sorted(names)}", flag)
    except TeachonceError:
        raise
    except UNREADABLE as error:
        raise NoSuchDataError(source, f"cannot be read: {first_line(error)}") from error


def _text(config: PrecomputeConfig, source: str, row: dict[str, Any], number: int) -> str:
    text = row.get(config.text_column)
    if not isinstance(text, str | None):
        found = f"row {number} holds {type(text).__name__}, not text"
        raise ColumnError(source, config.text_column, found, "--text-column")
    return text or ""


def _prompt(source: str, row: dict[str, Any], column: str, number: int, names: set[str]) -> Prompt:
    value = row.get(column)
    is_chat = isinstance(value, list) and len(value) > 0 and all(map(_is_message, value))
    if not isinstance(value, str) and not is_chat:
        holds = f"row {number} holds {type(value).__name__}, not text or chat"
        found = holds if column in row else f"not among {sorted(names)} of row {number}"
        raise ColumnError(source, column, found, "--samples.prompt-column or --beams.prompt-column")
    return value  # type: ignore[return-value]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()


def _prompt_columns(config: PrecomputeConfig) -> set[str]:
    return {kind.prompt_column for kind in config.prompt_settings.values() if kind.prompt_column}
