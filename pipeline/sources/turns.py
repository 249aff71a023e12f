"""What a row may hold in place of a text: a conversation, or a prompt and its completion. Values are as they stand."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.config import PrecomputeConfig


class Conversation(NamedTuple):
    """The value of a messages column."""

    messages: Any


class Pair(NamedTuple):
    """The values of a prompt column and a completion column."""

    prompt: Any
    completion: Any


def turns_of(config: PrecomputeConfig, row: dict[str, Any]) -> Conversation | Pair | None:
    """Return the values of the columns of a conversation or a pair; None when the run reads texts."""
    if not config.marks_wanted:
        return None
    values = map(row.get, config.document_columns.values())
    return Pair(*values) if config.messages_column is None else Conversation(*values)
