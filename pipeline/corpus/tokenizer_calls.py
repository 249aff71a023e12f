"""Tokenize documents. Short documents share a call of the tokenizer; a long one takes several calls."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus import long_texts
from pipeline.corpus.long_texts import LongTextTokenizer
from pipeline.corpus.parts.seams import joined
from pipeline.corpus.text_ahead import TextAhead
from pipeline.sources.documents import Document
from storage.processes import num_cores
from storage.text.characters import CharacterTokenizer, Encoded

# Change this text whenever the functions of this wing may give other ids for the same text and tokenizer.
TOKENIZATION_RULE = "texts as characters; long texts in windows of 131072 that overlap by 4096"
_CHARS_PER_CALL = 1 << 18
# What the tokenizers library reads as no.
_NO = ("", "off", "false", "f", "no", "n", "0")


class CorpusTokenizer:
    """Tokenizes the texts of a run as characters, and counts the control tokens that they spell out.

    characters: tokenizes single texts. num_control_tokens: how often each stood in the texts. num_chat_control_tokens:
    how often each stood in messages of chats. head, tail: of the part that was read; see parts.seams.
    """

    def __init__(self, tokenizer: Any, *, reads_all: bool) -> None:
        """reads_all: whether each text is read to its end. Reading ahead would count what lies behind another end."""
        self.characters = CharacterTokenizer(tokenizer)
        self._long_texts = LongTextTokenizer(self.characters, num_threads() if reads_all else 1)
        self._spelt_out = _pattern_of(self.characters.control_tokens)
        self._longest_chars = max(map(len, self.characters.control_tokens), default=1)
        self.num_control_tokens: Counter[str] = Counter()
        self.num_chat_control_tokens: Counter[str] = Counter()
        self.head: Encoded | None = None
        self.tail: Encoded | None = None

    @property
    def num_inexact_cuts(self) -> int:
        """How many cuts of long documents may have changed the tokens beside them."""
        return self._long_texts.num_inexact_cuts

    def prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        self.count_in_text(text)
        return self.characters.ids(text)

    def count_in_text(self, text: str) -> None:
        """Count the control tokens in a text that is tokenized elsewhere."""
        self.num_control_tokens.update(self._spelt_out.findall(text))

    def count_in_chat(self, messages: Iterable[dict[str, Any]]) -> None:
        """Count the control tokens in the contents of messages. A chat template reads these as control tokens."""
        contents = (message.get("content") for message in messages)
        for content in contents:
            if isinstance(content, str):
                self.num_chat_control_tokens.update(self._spelt_out.findall(content))

    def documents(self, documents: Iterable[Document]) -> Iterator[tuple[Document, Iterator[NDArray[Any]]]]:
        """Yield each document in order, with its token ids piece by piece.

        Read the pieces of a document before you take the next document. Pieces are int64 arrays [num_tokens]
        without special tokens; some may be empty.
        """
        batch: list[tuple[Document, str]] = []
        num_chars = 0
        for document in documents:
            ahead = TextAhead(document.pieces)
            text = ahead.peek(long_texts.WINDOW_CHARS + 1)
            is_short = len(text) <= long_texts.WINDOW_CHARS and not document.goes_on and not document.text_behind(1)
            if is_short:
                batch.append((document, text))
                num_chars += len(text)
            if not is_short or num_chars >= _CHARS_PER_CALL:
                yield from self._short_documents(batch)
                batch, num_chars = [], 0
            if not is_short:
                yield document, self._long_document(document, ahead)
        yield from self._short_documents(batch)

    def _short_documents(self, batch: list[tuple[Document, str]]) -> Iterator[tuple[Document, Iterator[NDArray[Any]]]]:
        encoded = self.characters.ids_of_all([text for _, text in batch])
        for (document, text), ids in zip(batch, encoded, strict=True):
            self.num_control_tokens.update(self._spelt_out.findall(text))
            yield document, iter([np.array(ids, dtype=np.int64)])

    def _long_document(self, document: Document, ahead: TextAhead) -> Iterator[NDArray[Any]]:
        text = TextAhead(self._counted(document, ahead.rest()))
        if not self.characters.is_fast:
            return self._long_texts.ids(text)
        return self._with_seams(document, self._long_texts.encoded(text))

    def _with_seams(self, document: Document, pieces: Iterable[Encoded]) -> Iterator[NDArray[Any]]:
        """Yield the ids of pieces; keep head and tail where parts cut the document."""
        self._own_chars: int | None = None
        tails: list[Encoded] = []
        for number, piece in enumerate(pieces):
            if document.goes_on and number == 0:
                self.head = piece.part(0, int(np.count_nonzero(piece.starts < long_texts.OVERLAP_CHARS)))
            if self._own_chars is not None:
                first = int(np.count_nonzero(piece.ends <= self._own_chars))
                tails.append(piece.part(first, None, -self._own_chars))
            yield piece.ids
        if document.text_behind(1):
            self.tail = joined(tails)

    def _counted(self, document: Document, slices: Iterable[str]) -> Iterator[str]:
        """Yield the slices of a text, then the text behind it, and count the control tokens that begin in the text.

        They may stand on two slices.
        """
        kept, num_chars = "", 0
        for text in slices:
            yield text
            kept, num_chars = kept + text, num_chars + len(text)
            found = list(self._spelt_out.finditer(kept))
            self.num_control_tokens.update(match.group() for match in found)
            kept = kept[max([len(kept) - self._longest_chars + 1, *(match.end() for match in found[-1:]), 0]) :]
        behind = document.text_behind(long_texts.OVERLAP_CHARS)
        found = list(self._spelt_out.finditer(kept + behind[: self._longest_chars - 1]))
        self.num_control_tokens.update(match.group() for match in found if match.start() < len(kept))
        self._own_chars = num_chars
        yield behind


def use_threads(num_threads: int | None) -> None:
    """Let fast tokenizers of this process use so many threads; None: as many as it has cores, or as RAYON_NUM_THREADS
    says. The first texts decide: a later call can only turn several threads into one and back.
    """
    if num_threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"


def num_threads() -> int:
    """Return how many threads fast tokenizers of this process take, as `use_threads` or the environment says."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in _NO:
        return 1
    stated = os.environ.get("RAYON_NUM_THREADS", "")
    return int(stated) if stated.isdecimal() and int(stated) else num_cores()


def _pattern_of(control_tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds control tokens, longer ones first; without any, one that finds nothing."""
    longest_first = sorted(control_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
