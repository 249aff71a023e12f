"""Carry spans of characters over to tokens.

The tokens are those of the whole text: pieces that are tokenized apart may give other ids where they meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.chats.template import Span
from storage.text.characters import CharacterTokenizer


class FlaggedIds(NamedTuple):
    """Token ids [num_tokens], and whether each is in a span: [num_tokens]."""

    ids: list[int]
    is_in_span: NDArray[np.bool_]


class FlaggedTokenizer:
    """Tokenizes texts with spans, by offsets where the tokenizer gives them."""

    def __init__(self, tokenizer: Any, characters: CharacterTokenizer) -> None:
        self._tokenizer, self._characters = tokenizer, characters

    def characters(self, text: str, spans: list[Span]) -> FlaggedIds:
        """Tokenize a text in which control tokens are characters."""
        if not self._characters.is_fast:
            return _by_prefixes(text, spans, self._characters.ids)
        encoded = self._characters.encode(text)
        offsets = np.stack([encoded.starts, encoded.ends], axis=1)
        return FlaggedIds(encoded.ids.tolist(), flags_by_offsets(text, offsets, spans))

    def rendered(self, text: str, spans: list[Span]) -> FlaggedIds:
        """Tokenize what a chat template wrote: its control tokens are control tokens."""
        if not self._characters.is_fast:
            return _by_prefixes(text, spans, self.rendered_ids)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return FlaggedIds(encoded["input_ids"], flags_by_offsets(text, offsets, spans))

    def rendered_ids(self, text: str) -> list[int]:
        """Return the token ids of what a chat template wrote."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _by_prefixes(text: str, spans: list[Span], ids_of: Callable[[str], list[int]]) -> FlaggedIds:
    ids = ids_of(text)
    return FlaggedIds(ids, flags_by_prefixes(text, ids, spans, ids_of))


def flags_by_offsets(text: str, offsets: NDArray[np.int64], spans: list[Span]) -> NDArray[np.bool_]:
    """Return whether each token has a character in a span: [num_tokens].

    offsets: characters [start, stop) of each token: [num_tokens, 2]. A token across the border of a span is in it: the
    student has to predict it whole. Some tokenizers give white space that begins a token to no token, and a token of
    white space alone no characters; that token then has the characters since the token before.
    """
    in_span = np.zeros(len(text) + 1, dtype=np.int64)
    for start, stop in spans:
        in_span[start:stop] = 1
    before = np.concatenate([[0], np.cumsum(in_span)])  # characters of spans before each place
    starts, stops = offsets[:, 0], offsets[:, 1]
    last_stops = np.concatenate([[0], np.maximum.accumulate(stops)[:-1]]) if len(stops) else stops
    starts = np.where(starts < stops, starts, np.minimum(last_stops, starts))
    is_in_span: NDArray[np.bool_] = before[stops] > before[starts]
    return is_in_span


def flags_by_prefixes(
    text: str, ids: list[int], spans: list[Span], ids_of: Callable[[str], list[int]]
) -> NDArray[np.bool_]:
    """Return the same for a tokenizer that gives no offsets: compare the ids with those of the text up to a border.

    From the first id that differs on, a token has characters from behind the border.
    """
    flags = np.zeros(len(ids), dtype=np.bool_)
    for start, stop in spans:
        first, _ = _shared(ids_of(text[:start]), ids)
        last, is_whole = _shared(ids_of(text[:stop]), ids)
        flags[first : last if is_whole else last + 1] = True
    return flags


def _shared(prefix_ids: list[int], ids: list[int]) -> tuple[int, bool]:
    """Return how many ids a prefix of the text shares with it, and whether these are all of its own."""
    length = min(len(prefix_ids), len(ids))
    differing = np.flatnonzero(np.asarray(prefix_ids[:length]) != np.asarray(ids[:length]))
    shared = int(differing[0]) if len(differing) else length
    return shared, shared == len(prefix_ids)
