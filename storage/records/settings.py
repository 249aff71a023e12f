"""Settings inside plan and manifest that readers compute with: right where they are stated.

Old caches, and such as hold other kinds, lack some; who needs one asks for it with `Cache.setting`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.errors import RecordError
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS

_LARGEST_LENGTH_PENALTY = 1e6
_LARGEST_TEMPERATURE = 1e308
_LONGEST_ROW = 1 << 20

Check = Callable[[Any], bool]


def check_settings(content: dict[str, Any], vocab_size: int, path: Path) -> None:
    """Raise RecordError for a setting that is stated and cannot be what it should."""
    eos_token_id = _either(_whole(0, vocab_size - 1), None)
    for names, (is_right, expected) in (_SETTINGS | {("tokenizer", "eos_token_id"): eos_token_id}).items():
        try:
            value = find_setting(content, names)
        except KeyError:
            continue
        if not is_right(value):
            raise RecordError(str(path), f"{'.'.join(names)!r} is {value!r:.60}, expected {expected}")


def find_setting(content: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value below `names`; raises KeyError where there is none."""
    value: Any = content
    for name in names:
        if not isinstance(value, dict):
            raise KeyError(name)
        value = value[name]
    return value


def _whole(least: int, most: int) -> tuple[Check, str]:
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def _number(above: float, below: float) -> tuple[Check, str]:
    return lambda value: type(value) in (int, float) and above < value < below, f"a number between {above} and {below}"


def _share() -> tuple[Check, str]:
    return lambda value: type(value) in (int, float) and 0 < value <= 1, "a number above 0 and at most 1"


def _either(rule: tuple[Check, str], other: object) -> tuple[Check, str]:
    is_right, expected = rule
    return lambda value: value is other or is_right(value), f"{expected}, or null"


def _of(expected: type, name: str) -> tuple[Check, str]:
    return lambda value: type(value) is expected, name


_SETTINGS: dict[tuple[str, ...], tuple[Check, str]] = {
    ("teacher", "context_length"): _whole(1, (1 << 63) - 1),
    ("tokenizer", "size"): _whole(0, (1 << 63) - 1),
    ("tokenizer", "sha256"): _of(str, "a sha256"),
    ("data", "longest_prompt_tokens"): _of(dict, "an object"),
    ("data", "longest_prompt_tokens", "samples"): _whole(0, _LONGEST_ROW),
    ("data", "longest_prompt_tokens", "beams"): _whole(0, _LONGEST_ROW),
    ("config", "soft_targets"): _of(dict, "an object"),
    ("config", "soft_targets", "top_k"): _whole(0, (1 << 63) - 1),
    ("config", "soft_targets", "tail_weight"): _either(_number(0, 1), None),
    ("config", "soft_targets", "mantissa_bits"): _whole(1, FLOAT16_MANTISSA_BITS),
    ("config", "samples"): _of(dict, "an object"),
    ("config", "samples", "max_new_tokens"): _whole(1, _LONGEST_ROW),
    ("config", "samples", "temperature"): _number(0, _LARGEST_TEMPERATURE),
    ("config", "samples", "top_p"): _share(),
    ("config", "beams"): _of(dict, "an object"),
    ("config", "beams", "max_new_tokens"): _whole(1, _LONGEST_ROW),
    ("config", "beams", "length_penalty"): _number(-_LARGEST_LENGTH_PENALTY, _LARGEST_LENGTH_PENALTY),
}
