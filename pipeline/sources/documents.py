"""What a data source gives: documents, in parts that can be read apart from each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.sources.turns import Conversation, Pair

Prompt = str | list[dict[str, Any]]


def _nothing(num_chars: int) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document: its text in pieces, cut anywhere, and its prompts by column (empty for plain text).

    turns: what a row holds in place of a text; pieces is empty then. place: of the document, for messages; empty if its
    number in the source says it.
    goes_on: whether the document began in the part before. text_behind: returns so many characters of the document that
    the next part begins with, once pieces are read; nothing when the document ends in this part.
    """

    pieces: Iterable[str]
    prompts: dict[str, Prompt]
    turns: Conversation | Pair | None = None
    place: str = ""
    goes_on: bool = False
    text_behind: Callable[[int], str] = _nothing


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighbouring documents. Each call of `documents()` reads them from the beginning.

    Read the pieces of a document before you take the next document: plain text is split as it is read.
    """

    documents: Callable[[], Iterator[Document]]
