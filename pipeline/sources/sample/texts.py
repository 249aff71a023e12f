"""Read a range of a plain text file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.sources.documents import Document
from pipeline.sources.sample.fragments import Fragment, Reading

_WORD_END = re.compile(rb"(?<=\S)\s")
_FARTHEST_BYTES = 128
_LONGEST_CHARACTER_BYTES = 4


class TextReader:
    """Reads ranges of a text. num_bytes: length of the file; None if its end was not reached."""

    is_whole = True

    def __init__(self, file: BinaryIO, num_bytes: int | None, separator: str | None) -> None:
        self._file, self._num_bytes = file, num_bytes
        self._separator = None if separator is None else separator.replace("\\n", "\n")

    def read(self, start: int, stop: int) -> Reading:
        """Return the text of the words that end in [start, stop), with the documents that end there."""
        before = max(start - 1, 0)
        self._file.seek(before)
        content = self._file.read(stop - before + _FARTHEST_BYTES + _LONGEST_CHARACTER_BYTES)
        is_end = self._num_bytes is not None and stop >= self._num_bytes
        first = 0 if start == 0 else _word_end(content, start - before)
        last = len(content) if is_end else _word_end(content, stop - before)
        text = content[first:last].decode("utf-8" if start else "utf-8-sig", errors="replace")
        fragments = self._fragments(text.replace("\r\n", "\n").replace("\r", "\n"), begins=start == 0, ends=is_end)
        return Reading(fragments=list(fragments), num_bytes=last - first)

    def _fragments(self, text: str, *, begins: bool, ends: bool) -> Iterator[Fragment]:
        documents = [text] if self._separator is None else text.split(self._separator)
        for index, document in enumerate(documents):
            yield Fragment(
                document=Document(pieces=[document], prompts={}),
                begins=begins or index > 0,
                ends=ends or index < len(documents) - 1,
            )


def _word_end(content: bytes, place: int) -> int:
    """Return where the first word at or after `place` ends; without one nearby, where the next character begins."""
    found = _WORD_END.search(content, place, place + _FARTHEST_BYTES)
    if found:
        return found.start()
    while place < len(content) and content[place] & 0xC0 == 0x80:
        place += 1
    return place
