"""Rules for the settings that a cache states. A rule is a test of the value and a text that says what is expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LONGEST_ROW_TOKENS = 1 << 20
_MOST_IDS = 256

Rule = tuple[Callable[[Any], bool], str]


def whole(least: int, most: int) -> Rule:
    """Expect a whole number from `least` to `most`, both included."""
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def token_ids(vocab_size: int) -> Rule:
    """Expect a short list of ids inside the vocabulary."""
    is_id, _ = whole(0, vocab_size - 1)
    return (
        lambda value: type(value) is list and len(value) <= _MOST_IDS and all(map(is_id, value)),
        f"a list of up to {_MOST_IDS} ids below {vocab_size}",
    )


def number(above: float, below: float) -> Rule:
    """Expect a number between `above` and `below`, both excluded."""
    return lambda value: type(value) in (int, float) and above < value < below, f"a number between {above} and {below}"


def share() -> Rule:
    """Expect a number above 0 and at most 1."""
    return lambda value: type(value) in (int, float) and 0 < value <= 1, "a number above 0 and at most 1"


def either(rule: Rule, other: object) -> Rule:
    """Expect what `rule` allows, or `other`, which must be None: the message calls it null."""
    is_right, expected = rule
    return lambda value: value is other or is_right(value), f"{expected}, or null"


def some_of(names: Sequence[str]) -> Rule:
    """Expect a list of some of `names`, in their order."""
    return (
        lambda value: isinstance(value, list) and value == [name for name in names if name in value],
        f"a list of some of {', '.join(names)}, in this order",
    )


def of(expected: type, name: str) -> Rule:
    """Expect a value of exactly the type `expected`; messages call it `name`."""
    return lambda value: type(value) is expected, name
