"""The kinds of rows, in the order in which a cache lists them."""

from __future__ import annotations

KINDS = ("soft_targets", "samples", "beams")
