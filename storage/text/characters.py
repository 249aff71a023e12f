"""Tokenize a text as characters: a control token that is spelt out in it is text, not a command.

Control tokens are those that a tokenizer flags or names as special (`<|endoftext|>`, `</s>`). Other added tokens, such
as `<tool_call>` or runs of spaces, are vocabulary and stay tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids [N] of a text, and where each token begins and ends in it: int64, [N], in characters."""

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def part(self, first: int, last: int | None, shift: int = 0) -> Encoded:
        """Return tokens [first, last), with `shift` added to their places."""
        tokens = slice(first, last)
        return Encoded(ids=self.ids[tokens], starts=self.starts[tokens] + shift, ends=self.ends[tokens] + shift)

    def boundaries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places between tokens, ascending, and the index of the token behind each.

        No place cuts through a character that is several tokens. Of several tokens behind one place the last counts.
        """
        behind = np.flatnonzero(self.ends[:-1] <= self.starts[1:]) + 1
        places, reversed_index = np.unique(self.ends[behind - 1][::-1], return_index=True)
        return places, behind[::-1][reversed_index]


class CharacterTokenizer:
    """A tokenizer that reads texts as characters and puts no special tokens around them.

    A tokenizer written in Python can ignore only all its added tokens or none. It ignores all in a text that spells a
    control token, so added tokens that are not special are lost there.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.is_fast: bool = tokenizer.is_fast
        flagged = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.control_tokens = {
            token: tokenizer.convert_tokens_to_ids(token)
            for token in sorted(flagged.union(tokenizer.all_special_tokens))
            if len(token) > 1
        }
        """The id of each control token of several characters by its spelling."""
        self._spellings = self._ids_of_spellings()

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        [ids] = self.ids_of_all([text])
        return ids

    def ids_of_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        if not self.is_fast:
            return [self._slow_ids(text) for text in texts]
        encodings = self._fast_encodings(texts) if texts else []
        return [
            encoding.ids if self._spellings.keys().isdisjoint(encoding.ids) else self._respelt(text, encoding)[0]
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def encode(self, text: str) -> Encoded:
        """Return the token ids of a text and their places. For fast tokenizers only."""
        [encoded] = self.encode_all([text])
        return encoded

    def encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the token ids of each text and their places. For fast tokenizers only."""
        encodings = list(self._fast_encodings(texts))[::-1]
        return [self._encoded(text, encodings.pop()) for text in texts]  # an encoding takes ten times what it becomes

    def _encoded(self, text: str, encoding: Any) -> Encoded:
        is_plain = self._spellings.keys().isdisjoint(encoding.ids)
        ids, places = (encoding.ids, encoding.offsets) if is_plain else self._respelt(text, encoding)
        starts, ends = np.array(places, dtype=np.int64).reshape(-1, 2).T
        return Encoded(ids=np.array(ids, dtype=np.int64), starts=starts, ends=ends)

    def _fast_encodings(self, texts: Sequence[str]) -> Any:
        return self._tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        ).encodings

    def _slow_ids(self, text: str) -> list[int]:
        spells_one = any(token in text for token in self.control_tokens)
        options = {"split_special_tokens": True} if spells_one else {}
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]
        return ids

    def _ids_of_spellings(self) -> dict[int, list[int]]:
        """Return, for each control token, the ids of the characters that spell it; none for that of unknown text."""
        return {
            index: [part for part in self._tokenizer.convert_tokens_to_ids(list(token)) if part is not None]
            for token, index in self.control_tokens.items()
            if index != self._tokenizer.unk_token_id
        }

    def _respelt(self, text: str, encoding: Any) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ids and places of an encoding. A control token that stands for its own spelling becomes characters.

        Some models hold control tokens in their own vocabulary (Unigram: `</s>` with the best of all scores), so they
        find them in a text even when the tokenizer looks for none.
        """
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            found = [index]
            if index in self._spellings and self._tokenizer.convert_ids_to_tokens(index) in text[start:end]:
                found = self._spellings[index]
            ids += found
            places += [(start, end)] * len(found)
        return ids, places


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of one text, read as characters. For many texts make one CharacterTokenizer."""
    return CharacterTokenizer(tokenizer).ids(text)
