"""The table of the parts of the loss by kind, in the order in which a cache lists the kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from student.losses.parts.beams import BeamsPart
from student.losses.parts.part import LossPart
from student.losses.parts.samples import SamplesPart
from student.losses.parts.soft_targets import SoftTargetsPart

PARTS: Mapping[str, type[LossPart[Any]]] = {part.kind: part for part in (SoftTargetsPart, SamplesPart, BeamsPart)}
