"""What a row may hold in place of a text: a conversation, or a prompt and its completion. Values are as they stand."""

from __future__ import annotations

from typing import Any, NamedTuple


class Conversation(NamedTuple):
    """The value of a messages column."""

    messages: Any


class Pair(NamedTuple):
    """The values of a prompt column and a completion column."""

    prompt: Any
    completion: Any
