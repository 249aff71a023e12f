"""Tokenize the documents of a corpus, whether they are texts, conversations or pairs, and the prompts beside them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.config import PrecomputeConfig
from pipeline.corpus.chats.template import ChatTemplate, chat_template_of
from pipeline.corpus.chats.token_flags import flags_by_offsets, flags_by_prefixes
from pipeline.corpus.chats.turns import TaughtText, question_of, taught_text
from pipeline.corpus.document_writer import Piece
from pipeline.corpus.tokenizer_calls import tokenized_documents
from pipeline.errors import BadRowError, RefusedChatError
from pipeline.sources.corpus import Document, Prompt
from pipeline.sources.turns import Conversation, Pair


class RowTokenizer:
    """Tokenizes rows. The chat template is compiled when the first conversation comes."""

    def __init__(self, tokenizer: Any, config: PrecomputeConfig, dtype: Any) -> None:
        self._tokenizer, self._config, self._dtype = tokenizer, config, dtype

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        return chat_template_of(self._tokenizer, self._config)

    def tokenized(self, documents: Iterable[Document]) -> Iterator[tuple[Document, Iterator[Piece] | None]]:
        """Yield each document in order, with its tokens piece by piece; None for a bad row that is to be skipped.

        Read the pieces of a document before you take the next document. Raises BadRowError and ChatTemplateError.
        """
        for turns_type, group in itertools.groupby(documents, lambda document: type(document.turns)):
            if turns_type is type(None):
                for document, pieces in tokenized_documents(group, self._tokenizer, self._dtype):
                    yield document, map(Piece, pieces)
            else:
                for document in group:
                    yield document, self._taught(document)

    def ends_itself(self, document: Document) -> bool:
        """Return whether a document is a conversation, whose template writes its end."""
        turns = document.turns
        return isinstance(turns, Conversation) or (isinstance(turns, Pair) and isinstance(turns.prompt, list))

    def prompt_ids(self, document: Document, column: str, prompt: Prompt) -> list[int] | None:
        """Return the token ids of a text, or of a rendered chat; None for a bad one that is to be skipped.

        Raises BadRowError and ChatTemplateError.
        """
        if isinstance(prompt, str):
            return self._ids(prompt)
        try:
            return self._ids(self._template.render(question_of(prompt), add_generation_prompt=True))
        except RefusedChatError as error:
            self._skip_or_raise(document, column, error)
            return None

    def _taught(self, document: Document) -> Iterator[Piece] | None:
        assert document.turns is not None
        try:
            return iter([self._flagged(taught_text(document.turns, lambda: self._template))])
        except RefusedChatError as error:
            self._skip_or_raise(document, " and ".join(self._config.document_columns.values()), error)
            return None

    def _skip_or_raise(self, document: Document, column: str, error: RefusedChatError) -> None:
        if self._config.on_bad_row == "stop":
            raise BadRowError(f"{document.place}, column {column!r}", error.reason) from error

    def _flagged(self, taught: TaughtText) -> Piece:
        if self._tokenizer.is_fast:
            encoded = self._tokenizer(taught.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
            flags = flags_by_offsets(taught.text, offsets, taught.spans)
            return Piece(np.array(encoded["input_ids"], dtype=self._dtype), flags)
        ids = self._ids(taught.text)
        flags = flags_by_prefixes(taught.text, ids, taught.spans, self._tokenizer)
        return Piece(np.array(ids, dtype=self._dtype), flags)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
