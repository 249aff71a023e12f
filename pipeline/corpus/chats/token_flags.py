"""Carry spans of characters over to tokens.

The tokens are those of the whole text: pieces that are tokenized apart may give other ids where they meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.chats.template import Span


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


def flags_by_prefixes(text: str, ids: list[int], spans: list[Span], tokenizer: Any) -> NDArray[np.bool_]:
    """Return the same for a tokenizer that gives no offsets: compare the ids with those of the text up to a border.

    From the first id that differs on, a token has characters from behind the border.
    """
    flags = np.zeros(len(ids), dtype=np.bool_)
    for start, stop in spans:
        first, _ = _shared(text[:start], ids, tokenizer)
        last, is_whole = _shared(text[:stop], ids, tokenizer)
        flags[first : last if is_whole else last + 1] = True
    return flags


def _shared(prefix: str, ids: list[int], tokenizer: Any) -> tuple[int, bool]:
    """Return how many ids a prefix of the text shares with it, and whether these are all of its own."""
    prefix_ids = tokenizer(prefix, add_special_tokens=False, verbose=False)["input_ids"]
    length = min(len(prefix_ids), len(ids))
    differing = np.flatnonzero(np.asarray(prefix_ids[:length]) != np.asarray(ids[:length]))
    shared = int(differing[0]) if len(differing) else length
    return shared, shared == len(prefix_ids)
