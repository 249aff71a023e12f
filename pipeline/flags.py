"""Values that flags of teachonce-precompute take."""

from __future__ import annotations

import typing
from typing import Literal

import tyro

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto"]
Engine = Literal["local", "ray"]
Only = Literal["tokenize"]
OnBadRow = Literal["stop", "skip"]
Plan = Literal["sample", "exact"]


def _plan_of(words: list[str]) -> Plan:
    if words not in ([], ["exact"]):
        raise ValueError(f"{' '.join(words)} follows --plan, expected nothing or exact")
    return "exact" if words else "sample"


# A flag whose value may be left out.
PLAN = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="[exact]",
    instance_from_str=_plan_of,
    is_instance=lambda value: value in typing.get_args(Plan),
    str_from_instance=lambda plan: [plan] if plan == "exact" else [],
)
