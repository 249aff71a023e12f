"""Encode windows of a long text before their turn, several in one call of the tokenizer, which takes them in threads.

Where a window begins follows from the encoding of the one before it, so windows come one after the other. But a few
characters around that place mostly tell it too. A guess that fails costs time and changes nothing: a window is used
only when it begins where the one before it says.
"""

from __future__ import annotations

from pipeline.corpus.text_ahead import TextAhead
from storage.text.characters import CharacterTokenizer, Encoded

# What mostly tells how the text is divided at a place: so many characters on either side.
_CONTEXT_CHARS = 256


class WindowsAhead:
    """Windows of a text, each window_chars long; at the text's end they are shorter.

    stride_chars: a window mostly begins at the first boundary of the one before it that is so far behind its beginning.
    most_at_once: most windows in one call. After a call of which some windows were not used there are half as many, and
    after one of which all were used twice as many. So a text without places to guess by takes at most a third more.
    """

    def __init__(
        self, tokenizer: CharacterTokenizer, text: TextAhead, *, window_chars: int, stride_chars: int, most_at_once: int
    ) -> None:
        self._tokenizer, self._text = tokenizer, text
        self._window_chars, self._stride_chars, self._most_at_once = window_chars, stride_chars, most_at_once
        self._num_at_once = most_at_once
        self._ready: dict[int, Encoded] = {}

    def at(self, begin: int) -> Encoded:
        """Return the encoding of the window that begins so many characters ahead."""
        place = self._text.num_dropped + begin
        if place not in self._ready:
            self._encode_from(begin)
        return self._ready.pop(place)

    def _encode_from(self, begin: int) -> None:
        if self._ready:
            self._num_at_once = max(self._num_at_once // 2, 1)
        else:
            self._num_at_once = min(2 * self._num_at_once, self._most_at_once)
        begins = [begin]
        while len(begins) < self._num_at_once and (following := self._likely_after(begins[-1])):
            begins.append(following)
        texts = [self._text.peek(start + self._window_chars)[start:] for start in begins]
        places = [self._text.num_dropped + start for start in begins]
        self._ready = dict(zip(places, self._tokenizer.encode_all(texts), strict=True))

    def _likely_after(self, begin: int) -> int | None:
        """Return where the window after the one at `begin` is likely to begin; None if there is none, or no guess."""
        if len(self._text.peek(begin + self._window_chars + 1)) <= begin + self._window_chars:
            return None
        earliest = begin + self._stride_chars
        first = max(begin, earliest - _CONTEXT_CHARS)
        places, _ = self._tokenizer.encode(self._text.peek(earliest + _CONTEXT_CHARS)[first:]).boundaries()
        behind = places[places >= earliest - first]
        return first + int(behind[0]) if len(behind) else None
