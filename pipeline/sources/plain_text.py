"""Read the documents of a plain text file, all of them or those in a range of its bytes.

A range begins behind a separator of documents if there is one nearby, else inside a document.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import NoSuchDataError
from pipeline.sources.data_files import open_range, place_of, refuse_utf16
from pipeline.sources.documents import Document
from storage.progress import tell

# Plain text is read in pieces of this many characters.
_PIECE_CHARS = 1 << 18
# The decoder replaces bytes that are not UTF-8 by this character.
_REPLACEMENT = "\ufffd"
# How far behind the wished place of a cut a separator, or the end of a line, is looked for.
_SEPARATOR_WITHIN_BYTES = 1 << 18
_LINE_WITHIN_BYTES = 1 << 12
# A run of spaces is not cut: tokenizers group its characters.
_LINE_END, _SPACE_END = re.compile(rb"\n(?=\S)"), re.compile(rb"\s(?=\S)")
# A newline as the decoder reads it. Each stands in one way only, so that a search cannot take half of one.
_NEWLINE = rb"(?:\r\n|\r(?!\n)|(?<!\r)\n)"


@dataclass(frozen=True, kw_only=True)
class TextRange:
    """Bytes [start, stop) of a text file, stop None for its end.

    begins_inside, ends_inside: whether the first byte, or the byte behind the last, goes on with a document.
    """

    start: int = 0
    stop: int | None = None
    begins_inside: bool = False
    ends_inside: bool = False


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """One range stops at the byte `stop`, and the next one starts at `start`, behind the separator."""

    stop: int
    start: int

    @property
    def is_inside(self) -> bool:
        """Whether a document goes on behind the cut."""
        return self.start == self.stop


def text_ranges(path: Path, separator: str | None, wished: list[int], *, splits_documents: bool) -> list[TextRange]:
    """Return ranges that together hold the whole file. wished: ascending bytes near which to cut, if possible.

    splits_documents: whether a document may be cut where no separator is near.
    """
    separator = None if separator is None else separator.replace("\\n", "\n")
    if separator is not None and ("\r" in separator or _REPLACEMENT in separator):
        return [TextRange()]  # found in decoded text only
    cuts: list[_Cut] = []
    with path.open("rb") as file:
        for wish in wished:
            cut = _cut_near(file, wish, separator, splits_documents=splits_documents)
            if cut and (not cuts or cut.stop > cuts[-1].start):
                cuts.append(cut)
    begins, ends = [_Cut(stop=0, start=0), *cuts], [*cuts, None]
    return [
        TextRange(
            start=begin.start,
            stop=None if end is None else end.stop,
            begins_inside=begin.start > 0 and begin.is_inside,
            ends_inside=end is not None and end.is_inside,
        )
        for begin, end in zip(begins, ends, strict=True)
    ]


def text_documents(path: Path, separator: str | None, text: TextRange) -> Iterator[Document]:
    """Yield the documents of a range; without a separator a file is one. Raises NoSuchDataError."""
    where = place_of(path, text.start)
    if separator is None:
        yield Document(
            pieces=_read_pieces(path, text),
            prompts={},
            place=where,
            goes_on=text.begins_inside,
            text_behind=lambda num_chars: _text_behind(path, text, num_chars),
        )
        return
    last: list[int] = []  # the number of the last document, once all are read

    def parts() -> Iterator[tuple[int, str]]:
        number = 0
        for number, piece in _split(_read_pieces(path, text), separator.replace("\\n", "\n")):
            yield number, piece
        last.append(number)

    def text_behind(number: int, num_chars: int) -> str:
        return _text_behind(path, text, num_chars) if number in last else ""

    for number, part in itertools.groupby(parts(), key=lambda part: part[0]):
        yield Document(
            pieces=(piece for _, piece in part),
            prompts={},
            place=f"document {number + 1} of {where}",
            goes_on=text.begins_inside and number == 0,
            text_behind=functools.partial(text_behind, number),
        )


def _split(pieces: Iterable[str], separator: str) -> Iterator[tuple[int, str]]:
    """Yield the text between separators in parts, each with the number of separators before it.

    Hold back only what may be the beginning of a separator, so that a long text without any is never held as a whole.
    """
    number, rest = 0, ""
    for piece in pieces:
        *whole, rest = (rest + piece).split(separator)
        for text in whole:
            yield number, text
            number += 1
        num_sure = max(0, len(rest) - len(separator) + 1)
        yield number, rest[:num_sure]
        rest = rest[num_sure:]
    yield number, rest


def _read_pieces(path: Path, text: TextRange) -> Iterator[str]:
    """Yield the text of a range in pieces. Raises NoSuchDataError.

    Bytes that are not UTF-8 become U+FFFD. Print the number of U+FFFD that were read.
    """
    num_replaced = 0
    try:
        refuse_utf16(path)
        with _decoded(path, text.start, text.stop) as file:
            while characters := file.read(_PIECE_CHARS):
                num_replaced += characters.count(_REPLACEMENT)
                yield characters
    except OSError as error:
        raise NoSuchDataError(str(path), f"cannot be read ({error})") from error
    finally:  # runs also when the caller stops early
        if num_replaced:
            tell(
                f"{place_of(path, text.start)}: read {num_replaced:,} U+FFFD, which stand for bytes that are not UTF-8 "
                "unless the text itself holds them; if these are too many, give a UTF-8 text"
            )


def _text_behind(path: Path, text: TextRange, num_chars: int) -> str:
    """Return the beginning of the next range if a document goes on there."""
    if not text.ends_inside:
        return ""
    assert text.stop is not None
    with _decoded(path, text.stop, None) as file:
        return file.read(num_chars)


def _decoded(path: Path, start: int, stop: int | None) -> io.TextIOWrapper:
    """Open bytes [start, stop) as text. Only a file's first bytes can be a mark of UTF-8 to leave out."""
    encoding = "utf-8" if start else "utf-8-sig"
    return io.TextIOWrapper(open_range(path, start, stop), encoding, errors="replace")


def _cut_near(file: io.BufferedReader, wish: int, separator: str | None, *, splits_documents: bool) -> _Cut | None:
    """Return the first sure cut at or behind the byte `wish`; None if there is none nearby."""
    longest = 1 if separator is None else len(separator.encode()) + separator.count("\n")
    first = max(0, wish - 4 * longest)
    file.seek(first)
    data = file.read(_SEPARATOR_WITHIN_BYTES + wish - first)
    if separator is not None:
        earliest, behind, is_free = wish - 2 * longest - first, 0, True
        for start, stop in _separators(data, separator):
            # One that overlaps none before it ends a document, wherever the reading begins.
            if start >= max(earliest, behind) and first + start > 0:
                return _Cut(stop=first + start, start=first + stop)
            behind, is_free = max(behind, stop), is_free and first + stop <= wish
        if not is_free:
            return None
    if not splits_documents:
        return None
    place = first + _end_of_line(data, wish - first)
    return _Cut(stop=place, start=place)


def _separators(data: bytes, separator: str) -> Iterator[tuple[int, int]]:
    """Yield where each separator starts and stops in data, also those that overlap. Leave out one at the very end."""
    lines = (re.escape(line.encode()) for line in separator.split("\n"))
    pattern = re.compile(b"(?=(" + _NEWLINE.join(lines) + b"))")
    return (match.span(1) for match in pattern.finditer(data) if match.end(1) < len(data))


def _end_of_line(data: bytes, place: int) -> int:
    """Return the first place behind a line's end nearby, else behind a space, else between two characters.

    There tokens of both sides are soon the same.
    """
    if found := _LINE_END.search(data, place, place + _LINE_WITHIN_BYTES) or _SPACE_END.search(data, place):
        return found.end()
    is_continuation = [byte & 0xC0 == 0x80 for byte in data[place : place + 3]]
    return place + next((i for i, is_inside in enumerate(is_continuation) if not is_inside), len(is_continuation))
