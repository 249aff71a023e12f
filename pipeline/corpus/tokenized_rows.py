"""Tokenize the documents of a corpus, whether they are texts, conversations or pairs, and the prompts beside them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.config import PrecomputeConfig
from pipeline.corpus.chats.assistant_spans import assistant_spans
from pipeline.corpus.chats.template import ChatTemplate, chat_template_of
from pipeline.corpus.chats.token_flags import FlaggedIds, FlaggedTokenizer
from pipeline.corpus.chats.turns import joined_pair, messages_of, question_of
from pipeline.corpus.document_writer import Piece
from pipeline.corpus.tokenizer_calls import CorpusTokenizer
from pipeline.errors import BadRowError, RefusedChatError
from pipeline.sources.documents import Document, Prompt
from pipeline.sources.turns import Conversation, Pair


class RowTokenizer:
    """Tokenizes rows. The chat template is compiled when the first conversation comes.

    texts: tokenizes texts, and counts the control tokens that texts and messages spell out.
    """

    def __init__(self, tokenizer: Any, config: PrecomputeConfig) -> None:
        self._tokenizer, self._config = tokenizer, config
        self.texts = CorpusTokenizer(tokenizer, reads_all=config.max_tokens is None)
        self._flagged = FlaggedTokenizer(tokenizer, self.texts.characters)

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        return chat_template_of(self._tokenizer, self._config)

    def tokenized(self, documents: Iterable[Document]) -> Iterator[tuple[Document, Iterator[Piece] | None]]:
        """Yield each document in order, with its tokens piece by piece; None for a bad row that is to be skipped.

        Read the pieces of a document before you take the next document. Raises BadRowError and ChatTemplateError.
        """
        for is_text, group in itertools.groupby(documents, lambda document: document.turns is None):
            if is_text:
                for document, pieces in self.texts.documents(group):
                    yield document, map(Piece, pieces)
            else:
                for document in group:
                    yield document, self._taught(document)

    def ends_itself(self, document: Document) -> bool:
        """Return whether a document is a conversation, whose template writes its end."""
        turns = document.turns
        return isinstance(turns, Conversation) or (isinstance(turns, Pair) and isinstance(turns.prompt, list))

    def prompt_ids(self, document: Document, column: str, prompt: Prompt) -> list[int] | None:
        """Return the token ids of a text, or of a rendered chat; None without a question, or for a bad row to skip.

        Raises BadRowError and ChatTemplateError.
        """
        if isinstance(prompt, str):
            return self.texts.prompt_ids(prompt)
        try:
            question = question_of(prompt)
            if not question:  # the assistant speaks first, so there is an answer to learn and nothing to continue
                return None
            text = self._template.render(question, add_generation_prompt=True)
        except RefusedChatError as error:
            self._skip_or_raise(document, [column], error)
            return None
        self.texts.count_in_chat(question)
        return self._flagged.rendered_ids(text)

    def _taught(self, document: Document) -> Iterator[Piece] | None:
        assert document.turns is not None
        try:
            ids, is_wanted = self._flagged_ids(document.turns)
        except RefusedChatError as error:
            self._skip_or_raise(document, [*self._config.document_columns.values()], error)
            return None
        return iter([Piece(np.array(ids, dtype=np.int64), is_wanted)])

    def _flagged_ids(self, turns: Conversation | Pair) -> FlaggedIds:
        if isinstance(turns, Pair) and not isinstance(turns.prompt, list):
            text, spans = joined_pair(turns)
            self.texts.count_in_text(text)
            return self._flagged.characters(text, spans)
        messages, first_wanted = messages_of(turns)
        text, spans = assistant_spans(self._template, messages, first_wanted)
        self.texts.count_in_chat(messages)
        return self._flagged.rendered(text, spans)

    def _skip_or_raise(self, document: Document, columns: list[str], error: RefusedChatError) -> None:
        if self._config.on_bad_row == "stop":
            named = f"column{'s' * (len(columns) - 1)} {' and '.join(map(repr, columns))}"
            raise BadRowError(f"{document.place}, {named}", error.reason) from error
