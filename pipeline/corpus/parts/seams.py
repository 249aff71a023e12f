"""Join the tokens of a document that parts cut, so that they are those of the document at once.

The part before reads on behind its end, so that both parts have encoded the text behind the cut. The second part takes
over where they agree, as one window of a long text takes over from another (see long_texts).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.corpus.long_texts import agreement
from storage.disk.files import refusals
from storage.text.characters import Encoded


class Seam(NamedTuple):
    """How many tokens to leave out: the last ones of the part before, and the first ones of the part behind the cut.

    is_exact: whether the tokens left are those of the whole document.
    """

    num_dropped: int
    num_skipped: int
    is_exact: bool


def seam(tail: Encoded, head: Encoded) -> Seam:
    """Return how a document goes on from one part to the next.

    tail: the last tokens of the part before, those that end behind the cut. head: the first tokens of the next part.
    Both have places relative to the cut. Where no stretch agrees, take the last place between two tokens of both, else
    leave out the tokens that the tail covers: of the next one, a few characters stand twice.
    """
    if place := agreement(tail, head, 0):
        return Seam(len(tail.ids) - place[0], place[1], is_exact=True)
    (ends, kept), (starts, skipped) = tail.boundaries(), head.boundaries()
    if len(tail.ids) and tail.starts[0] >= 0:
        ends, kept, starts, skipped = (np.insert(array, 0, 0) for array in (ends, kept, starts, skipped))
    common = np.intersect1d(ends, starts)
    if len(common):
        left, right = np.searchsorted(ends, common[-1]), np.searchsorted(starts, common[-1])
        return Seam(len(tail.ids) - int(kept[left]), int(skipped[right]), is_exact=False)
    covered = int(tail.ends[-1]) if len(tail.ids) else 0
    return Seam(0, int(np.count_nonzero(head.ends <= covered)), is_exact=False)


def joined(pieces: Sequence[Encoded]) -> Encoded:
    """Return several encodings as one."""
    empty = np.empty(0, np.int64)
    ids, starts, ends = (
        (np.concatenate([empty, *arrays]) for arrays in zip(*((p.ids, p.starts, p.ends) for p in pieces), strict=True))
        if pieces
        else (empty, empty, empty)
    )
    return Encoded(ids=ids, starts=starts, ends=ends)


def write_encoded(path: Path, encoded: Encoded) -> None:
    """Store an encoding. Raises WriteRefusedError."""
    with refusals(path):
        np.save(path, np.stack([encoded.ids, encoded.starts, encoded.ends]))


def read_encoded(path: Path) -> Encoded:
    """Return a stored encoding."""
    ids, starts, ends = np.load(path)
    return Encoded(ids=ids, starts=starts, ends=ends)
