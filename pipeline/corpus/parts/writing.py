"""Tokenize one part of a corpus into stores of its own, and count what was read and skipped.

A part's stores depend on the part alone, but for where --max-tokens ends them. Which documents are held out follows
from their numbers, which are known when the parts before are counted.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PrecomputeConfig
from pipeline.corpus.document_writer import Piece
from pipeline.corpus.parts.seams import read_encoded, write_encoded
from pipeline.corpus.token_store import TokenStore, TokenWriter, map_array
from pipeline.corpus.tokenized_rows import RowTokenizer
from pipeline.errors import TokenBeyondVocabularyError
from pipeline.sources.corpus import Corpus
from pipeline.sources.documents import Document, Part
from storage.disk.files import refusals, write_file
from storage.rows.columns import token_type
from storage.text.beginnings import without_beginning
from storage.text.characters import Encoded

_COUNTS_NAME = "counts.json"
_NUMBERS_NAME = "numbers.bin"
_DOCUMENTS_NAME = "documents"
_HEAD_NAME, _TAIL_NAME = "head.npy", "tail.npy"


@dataclass(frozen=True, kw_only=True)
class TokenizationPlan:
    """What to tokenize, and how to store it.

    vocab_size: ids that the teacher has rows for. beginning_ids: what segments and prompts begin with. context_length:
    tokens that the teacher can read.
    """

    corpus: Corpus
    tokenizer: Any
    config: PrecomputeConfig
    vocab_size: int
    beginning_ids: tuple[int, ...]
    context_length: int

    @property
    def dtype(self) -> Any:
        """The dtype of the stored ids."""
        return token_type(self.vocab_size).to_pandas_dtype()

    @functools.cached_property
    def prompt_limits(self) -> dict[str, int]:
        """The maximum tokens of a prompt that leave room for the completion, by column."""
        limits: dict[str, int] = {}
        for settings in self.config.prompt_settings.values():
            if settings.prompt_column:
                room = self.context_length - len(self.beginning_ids) - settings.max_new_tokens
                limits[settings.prompt_column] = min(room, limits.get(settings.prompt_column, room))
        return limits

    @functools.cached_property
    def parts(self) -> list[Part]:
        """The parts of the corpus. Documents are cut where seams can be mended and no token is counted."""
        return list(self.corpus.parts(self.tokenizer.is_fast and self.config.max_tokens is None))


@dataclass(frozen=True, kw_only=True)
class PartCounts:
    """How many documents and prompts of a part were read or skipped.

    room: tokens after which reading stops; None reads all. num_documents: those that begin in the part. The others are
    as in TokenizationCounts.
    """

    room: int | None
    num_tokens: int
    num_documents: int
    num_documents_skipped: int
    num_prompts_skipped: int
    num_bad_rows: int
    num_inexact_cuts: int
    num_control_tokens: dict[str, int] = field(default_factory=dict)
    num_chat_control_tokens: dict[str, int] = field(default_factory=dict)


class NumberedWriter(TokenWriter):
    """Write tokens of documents, each with the document's number in its part."""

    def __init__(self, directory: Path, dtype: Any, *, marks_wanted: bool = False) -> None:
        super().__init__(directory, dtype, marks_wanted=marks_wanted)
        with refusals(directory):
            self._numbers = (directory / _NUMBERS_NAME).open("wb")

    def write(self, pieces: Iterable[Piece], number: int) -> int:
        """Write a document; return its number of tokens."""
        before = self.num_tokens
        for piece in pieces:
            self.append(*piece)
        self.end_document()
        with refusals(self._directory):
            self._numbers.write(np.int64(number).tobytes())
        return self.num_tokens - before

    def close(self) -> TokenStore:
        """Close the files and return the readable store."""
        with refusals(self._directory):
            self._numbers.close()
        return super().close()


class NumberedStore(TokenStore):
    """Documents to read, with `numbers` [num_documents]: that of each in its part, −1 for one that began before it."""

    def __init__(self, directory: Path, dtype: Any) -> None:
        super().__init__(directory, dtype)
        self.numbers = map_array(directory / _NUMBERS_NAME, np.dtype(np.int64))


class TokenizedPart:
    """The stores of a part in a directory. head, tail: see seams; None where no document is cut."""

    def __init__(self, plan: TokenizationPlan, directory: Path) -> None:
        self.counts = counts_of(directory)
        self.documents = NumberedStore(directory / _DOCUMENTS_NAME, plan.dtype)
        self.prompts = {
            column: NumberedStore(directory / name, plan.dtype) for column, name in prompt_names(plan).items()
        }
        self.head, self.tail = (_encoded(directory / name) for name in (_HEAD_NAME, _TAIL_NAME))


def counts_of(directory: Path) -> PartCounts:
    """Return the counts of a part, without opening its stores."""
    return PartCounts(**json.loads((directory / _COUNTS_NAME).read_bytes()))


def write_part(
    plan: TokenizationPlan, part: Part, directory: Path, room: int | None, count: Callable[[int], object]
) -> None:
    """Store the documents of a part and their prompts in order, until `room` tokens are stored or the part ends.

    count: called with the number of tokens of each piece. Raises DataError, TokenBeyondVocabularyError or
    WriteRefusedError.
    """
    rows = RowTokenizer(plan.tokenizer, plan.config)
    writer = NumberedWriter(directory / _DOCUMENTS_NAME, plan.dtype, marks_wanted=plan.config.marks_wanted)
    prompts = {column: NumberedWriter(directory / name, plan.dtype) for column, name in prompt_names(plan).items()}
    num_documents = num_skipped = num_prompts_skipped = num_bad_rows = num_tokens = 0
    for document, pieces in rows.tokenized(part.documents()):
        num_documents += not document.goes_on
        if pieces is None:
            num_bad_rows += 1
            continue
        first = _first_tokens(pieces)
        if not document.goes_on:
            first = _without_beginning(first, plan.beginning_ids)
        if len(first.ids) < 2 and not document.goes_on and not document.text_behind(1):
            num_skipped += 1
            continue
        left = None if room is None else room - num_tokens
        whole = itertools.chain(_up_to(left, itertools.chain([first], pieces)), _end(plan, rows, document))
        place = document.place or f"document {num_documents}"
        checked = (_with_rows(plan, piece, place) for piece in whole)
        num_tokens += writer.write(_counted(checked, count), num_documents - 1)
        for column, prompt in document.prompts.items():
            prompt_ids = np.array(rows.prompt_ids(document, column, prompt) or [], dtype=np.int64)
            piece = _without_beginning(Piece(prompt_ids), plan.beginning_ids)
            if 1 <= len(piece.ids) <= plan.prompt_limits[column]:
                prompts[column].write([_with_rows(plan, piece, f"column {column!r}, {place}")], num_documents - 1)
            else:
                num_prompts_skipped += 1
        if room is not None and num_tokens >= room:
            break
    for store in (writer, *prompts.values()):
        store.close()
    for name, encoded in ((_HEAD_NAME, rows.texts.head), (_TAIL_NAME, rows.texts.tail)):
        if encoded is not None:
            write_encoded(directory / name, encoded)
    counts = PartCounts(
        room=room,
        num_tokens=num_tokens,
        num_documents=num_documents,
        num_documents_skipped=num_skipped,
        num_prompts_skipped=num_prompts_skipped,
        num_bad_rows=num_bad_rows,
        num_inexact_cuts=rows.texts.num_inexact_cuts,
        num_control_tokens=dict(rows.texts.num_control_tokens),
        num_chat_control_tokens=dict(rows.texts.num_chat_control_tokens),
    )
    write_file(directory / _COUNTS_NAME, json.dumps(asdict(counts)).encode())


def prompt_names(plan: TokenizationPlan) -> dict[str, str]:
    """Return the name of each column's store of prompts."""
    return {column: f"prompts-{index}" for index, column in enumerate(sorted(plan.prompt_limits))}


def _encoded(path: Path) -> Encoded | None:
    return read_encoded(path) if path.exists() else None


def _end(plan: TokenizationPlan, rows: RowTokenizer, document: Document) -> Iterator[Piece]:
    """Yield the end-of-text of a document that needs one and ends in this part. Read its pieces before."""
    eos_token_id = plan.tokenizer.eos_token_id
    if eos_token_id is not None and not rows.ends_itself(document) and not document.text_behind(1):
        yield Piece(np.array([eos_token_id], dtype=np.int64))


def _first_tokens(pieces: Iterator[Piece]) -> Piece:
    """Return the first pieces of a document joined, as many as hold two tokens."""
    first = next(pieces, Piece(np.empty(0, np.int64)))
    while len(first.ids) < 2 and (piece := next(pieces, None)) is not None:
        first = Piece(np.concatenate([first.ids, piece.ids]))  # only texts come in several pieces
    return first


def _without_beginning(piece: Piece, beginning_ids: tuple[int, ...]) -> Piece:
    """Return a document's first piece, or a prompt, without the beginning that a chat template may have written."""
    ids = without_beginning(piece.ids, beginning_ids)
    return Piece(ids, None if piece.is_wanted is None else piece.is_wanted[len(piece.ids) - len(ids) :])


def _with_rows(plan: TokenizationPlan, piece: Piece, place: str) -> Piece:
    """Return the piece; raise TokenBeyondVocabularyError for an id that the teacher has no row for. place: of it."""
    beyond: NDArray[Any] = piece.ids[piece.ids >= plan.vocab_size]
    if len(beyond):
        token = str(plan.tokenizer.convert_ids_to_tokens(int(beyond[0])))
        raise TokenBeyondVocabularyError(plan.config.teacher, token, int(beyond[0]), plan.vocab_size, place)
    return piece


def _counted(pieces: Iterable[Piece], count: Callable[[int], object]) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        count(len(piece.ids))


def _up_to(room: int | None, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces of a document, cut after `room` tokens in all; None cuts nothing."""
    for ids, is_wanted in pieces:
        yield Piece(ids[:room], None if is_wanted is None else is_wanted[:room])
        if room is not None:
            room -= len(ids)
            if room <= 0:
                return
