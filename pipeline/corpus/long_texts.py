"""Tokenize a text of any length, window by window, in time linear in its length and in bounded memory.

Two neighbouring windows overlap. Tokens near a window's edge may be wrong: a mark at the beginning of the text, a word
cut in two, digits grouped from another place. So the next window takes over in the middle of the longest stretch of the
overlap on which both windows agree, token by token and place by place.

This gives the ids of the whole text at once:
- A pre-tokenizer that scans from left to right is in the same state in both windows from a common boundary on. The
  overlap begins at a boundary of the first window, so that both scan it in step even where it is one run of digits.
- BPE inside one pre-token: neighbouring tokens of an encoding decide by themselves that no merge crosses from one into
  the other. All neighbours of the joined encoding are neighbours in one of the windows, so it is the encoding.
- Unigram: the best path of each window leads through the stretch. A best path of the whole that shares a boundary with
  it there is no better than the joined one. (Rounding decides between paths of equal score, and so does a text's
  beginning where a tokenizer does not split it into words.)

Where no stretch agrees (a word of a hundred thousand letters that WordPiece reads as one unknown token), the text is
cut at a place that depends on the text alone. Such cuts are counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.text_ahead import TextAhead
from pipeline.corpus.windows_ahead import WindowsAhead
from storage.text.characters import CharacterTokenizer, Encoded

# Length of a window, and of the overlap of two windows, in characters.
WINDOW_CHARS = 1 << 17
OVERLAP_CHARS = 1 << 12
# Shortest stretch on which windows must agree.
AGREED_TOKENS = 8
# Most windows in one call. Each takes 11 MB until it is arrays; 33 MB where a character is several tokens.
_MOST_AT_ONCE = 4
# A tokenizer in Python tells no places. Its text is cut where that changes no token among this many characters on
# either side, at one of so many places before the window's end.
_CONTEXT_CHARS = 256
_PLACES_TRIED = 16


class LongTextTokenizer:
    """Tokenizes long texts. num_inexact_cuts: how many cuts so far may have changed tokens beside them."""

    def __init__(self, tokenizer: CharacterTokenizer, num_threads: int) -> None:
        """num_threads: that the tokenizer takes for several texts in one call. The tokens do not depend on it."""
        self._tokenizer = tokenizer
        self._most_at_once = min(num_threads, _MOST_AT_ONCE)
        self.num_inexact_cuts = 0

    def ids(self, text: TextAhead) -> Iterator[NDArray[np.int64]]:
        """Yield the token ids of the whole text in pieces."""
        yield from (piece.ids for piece in self.encoded(text)) if self._tokenizer.is_fast else self._cut(text)

    def encoded(self, text: TextAhead) -> Iterator[Encoded]:
        """Yield the encoding of the whole text in pieces, with places in it. For fast tokenizers only."""
        windows = WindowsAhead(
            self._tokenizer,
            text,
            window_chars=WINDOW_CHARS,
            stride_chars=WINDOW_CHARS - OVERLAP_CHARS,
            most_at_once=self._most_at_once,
        )
        window, first, begin = windows.at(0), 0, 0
        while len(text.peek(WINDOW_CHARS + 1)) > WINDOW_CHARS:
            num_chars, following, left, right = self._following(windows, window)
            if following is None:
                window, left = self._cut_window(text, window, num_chars), None
            yield window.part(first, left, begin)
            text.drop(num_chars)
            begin += num_chars
            window, first = following or windows.at(0), right
        yield window.part(first, None, begin)

    def _following(self, windows: WindowsAhead, window: Encoded) -> tuple[int, Encoded | None, int | None, int]:
        """Return where the following window begins, its encoding, and the tokens at which it takes over from this one.

        The last three are None, None and 0 where the windows do not agree.
        """
        earliest = WINDOW_CHARS - OVERLAP_CHARS
        for begin in _beginnings(window, earliest):
            following = windows.at(begin)
            place = agreement(window, following, begin)
            if place is not None:
                return begin, following, *place
        return earliest, None, None, 0

    def _cut_window(self, text: TextAhead, window: Encoded, num_chars: int) -> Encoded:
        """Return the encoding of the window's first num_chars characters; count the cut unless it changes nothing."""
        whole = text.peek(WINDOW_CHARS)
        before, after = self._tokenizer.encode(whole[:num_chars]), self._tokenizer.encode(whole[num_chars:])
        self.num_inexact_cuts += not np.array_equal(window.ids, np.concatenate([before.ids, after.ids]))
        return before

    def _cut(self, text: TextAhead) -> Iterator[NDArray[np.int64]]:
        while len(text.peek(WINDOW_CHARS + 1)) > WINDOW_CHARS:
            num_chars = self._place_to_cut(text.peek(WINDOW_CHARS + _CONTEXT_CHARS))
            yield np.array(self._tokenizer.ids(text.peek(num_chars)), dtype=np.int64)
            text.drop(num_chars)
        yield np.array(self._tokenizer.ids(text.peek(WINDOW_CHARS)), dtype=np.int64)

    def _place_to_cut(self, text: str) -> int:
        """Return the last place beside a space at which a cut changes no token nearby; else count an inexact cut."""
        earliest = WINDOW_CHARS - OVERLAP_CHARS
        beside_space = (p for p in range(WINDOW_CHARS, earliest, -1) if text[p - 1].isspace() != text[p].isspace())
        for place, _ in zip(beside_space, range(_PLACES_TRIED), strict=False):
            before, after = text[place - _CONTEXT_CHARS : place], text[place : place + _CONTEXT_CHARS]
            whole, *parts = self._tokenizer.ids_of_all([before + after, before, after])
            if whole == parts[0] + parts[1]:
                return place
        self.num_inexact_cuts += 1
        return WINDOW_CHARS


def agreement(window: Encoded, following: Encoded, begin: int) -> tuple[int, int] | None:
    """Return the indices of the token at which the following window takes over: in `window` and in `following`.

    begin: where the following window begins in `window`, in characters. It is the middle token of the longest stretch
    on which both hold the same ids at the same places; None if that is shorter than AGREED_TOKENS tokens.
    """
    places, starts = window.boundaries()
    following_places, following_starts = following.boundaries()
    _, ours, theirs = np.intersect1d(places, following_places + begin, assume_unique=True, return_indices=True)
    left, right = starts[ours], following_starts[theirs]
    stretch = longest = (0, 0)
    for i in range(len(left) - 1):
        is_equal = np.array_equal(window.ids[left[i] : left[i + 1]], following.ids[right[i] : right[i + 1]])
        stretch = (stretch[0], i + 1) if is_equal else (i + 1, i + 1)
        longest = max(longest, stretch, key=lambda ends: left[ends[1]] - left[ends[0]])
    if not len(left) or left[longest[1]] - left[longest[0]] < AGREED_TOKENS:
        return None
    middle = sum(longest) // 2
    return int(left[middle]), int(right[middle])


def _beginnings(window: Encoded, earliest: int) -> list[int]:
    """Return the places at which the following window may begin, in the order to try them.

    At a boundary of this window; then one character later, where the mark that some tokenizers put before a text stands
    for a space that is left out, so that a run of spaces is grouped as in the whole.
    """
    places, _ = window.boundaries()
    inside = places[(places >= earliest) & (places < WINDOW_CHARS - 1)]
    return [int(inside[0]), int(inside[0]) + 1] if len(inside) else [earliest]
