"""The table of kinds, in the order in which a cache lists them."""

from __future__ import annotations

from collections.abc import Mapping

from storage.rows.beams import Beams
from storage.rows.kind import Kind
from storage.rows.samples import Samples
from storage.rows.soft_target_kind import SoftTargets

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (SoftTargets(), Samples(), Beams())}
