"""Keep of a docstring what reads as English about code."""

from __future__ import annotations

import re

_MIN_WORDS = 6
_MIN_SHARE_OF_LETTERS = 0.75
_MIN_SHARE_OF_ASCII = 0.99
_MAX_DOCTEST_SHARE = 0.3
# Section lines of numpydoc, fields of Sphinx and Epytext, rows of tables, directives.
_TABULAR = re.compile(r"^\s*([-=~^*`\"#+]{3,}|:\w+[^:]*:|@\w+|\||\+[-=]+|\.\. )", re.MULTILINE)
# A section of Google style, or a first line of numpydoc's that names a parameter and its type.
_PARAMETERS = re.compile(r"^\s*(Args|Arguments|Parameters|Attributes|Keyword Args|Other Parameters)\s*:?\s*$", re.M)
_TYPED = re.compile(r"^\s*[\w*, ]+ : \S", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z]{2,}")


def kept_prose(docstring: str) -> str | None:
    """Return the paragraphs that read as English, with few doctests between them, or None if they say too little.

    Tables, lists of typed parameters, drawings, markup of sections and texts in other scripts are left out.
    """
    paragraphs = [paragraph.rstrip() for paragraph in re.split(r"\n\s*\n", docstring) if paragraph.strip()]
    if not paragraphs or not _is_prose(paragraphs[0]):
        return None
    kept = [paragraph for paragraph in paragraphs if _is_doctest(paragraph) or _is_prose(paragraph)]
    doctest_chars = sum(len(paragraph) for paragraph in kept if _is_doctest(paragraph))
    if doctest_chars > _MAX_DOCTEST_SHARE * sum(map(len, kept)):
        kept = [paragraph for paragraph in kept if not _is_doctest(paragraph)]
    text = "\n\n".join(kept)
    return text if len(_WORD.findall(text)) >= _MIN_WORDS else None


def _is_prose(paragraph: str) -> bool:
    visible = "".join(paragraph.split())
    letters = sum(character.isalpha() for character in visible)
    ascii_chars = sum(character.isascii() for character in visible)
    return (
        letters >= _MIN_SHARE_OF_LETTERS * len(visible)
        and ascii_chars >= _MIN_SHARE_OF_ASCII * len(visible)
        and not any(pattern.search(paragraph) for pattern in (_TABULAR, _PARAMETERS, _TYPED))
        and not _is_doctest(paragraph)
    )


def _is_doctest(paragraph: str) -> bool:
    return paragraph.lstrip().startswith(">>>")
