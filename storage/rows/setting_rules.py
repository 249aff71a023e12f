"""What a setting that a cache states may be: rules as a test of the value and the words for what it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LONGEST_ROW_TOKENS = 1 << 20

Rule = tuple[Callable[[Any], bool], str]


def whole(least: int, most: int) -> Rule:
    """A whole number from `least` to `most`."""
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def number(above: float, below: float) -> Rule:
    """A number between two others."""
    return lambda value: type(value) in (int, float) and above < value < below, f"a number between {above} and {below}"


def share() -> Rule:
    """A number above 0 and at most 1."""
    return lambda value: type(value) in (int, float) and 0 < value <= 1, "a number above 0 and at most 1"


def either(rule: Rule, other: object) -> Rule:
    """What `rule` allows, or `other`, which stands as null in JSON."""
    is_right, expected = rule
    return lambda value: value is other or is_right(value), f"{expected}, or null"


def of(expected: type, name: str) -> Rule:
    """A value of a type, which messages call `name`."""
    return lambda value: type(value) is expected, name
