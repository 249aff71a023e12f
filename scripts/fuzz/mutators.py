"""Mutations of an input. Each is a function of the input and of a random number generator."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Iterator
from typing import Any

_INTS = (
    0, 1, -1, 2, 7, 8, -8, 64, 255, 2**15, 2**16, 2**30, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, -(2**63),
)  # fmt: skip
_JSON_VALUES: tuple[Any, ...] = (
    *_INTS, None, True, False, 2**70, 10**400, 0.25, 1.5, -0.0, 1e308, 5e-324, math.nan, math.inf,
    "", "x", "..", "/", "a" * 300, "\0", "\ud800", "0" * 64, [], {}, [[]], {"": {}},
)  # fmt: skip


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Drop and rename keys, change the type of values, repeat and exchange items. Sometimes change bytes instead."""
    content = parsed_json(data)
    if content is None or rng.random() < 0.05:
        return mutate_bytes(data, rng)
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            places = list(containers(content))
            if not places:
                break
            _mutate_container(rng.choice(places), rng)
        return json.dumps(content).encode()
    except RecursionError:  # nested too deeply to copy or write
        return data


def containers(content: Any) -> Iterator[Any]:
    """Yield every non-empty object and list, at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and value:
            yield value
            waiting += value.values() if isinstance(value, dict) else value


def _mutate_container(container: Any, rng: random.Random) -> None:
    key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    value, action = container[key], rng.random()
    if action < 0.4:
        container[key] = copy.deepcopy(rng.choice(_JSON_VALUES))  # a shared value could become part of itself
    elif action < 0.55 and type(value) in (int, float) and abs(value) < 2**64:
        container[key] = value + rng.choice((-1, 1, 0.5, value))
    elif action < 0.7:
        del container[key]
    elif isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(value))
    elif action < 0.85:
        container[rng.choice(("", key + " ", key.upper(), "surprise"))] = container.pop(key)
    else:
        container[key] = copy.deepcopy(container[rng.choice(list(container))])


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change bits, bytes and numbers, and copy, remove and insert pieces."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, action = rng.randrange(len(changed)), rng.random()
        if action < 0.3:
            changed[at] ^= 1 << rng.randrange(8)
        elif action < 0.5:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif action < 0.9:
            width, number_format = rng.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
            at -= at % width
            number = struct.pack(number_format, rng.choice(_INTS) % (1 << 8 * width))
            changed[at : at + width] = number[: len(changed) - at]
        elif action < 0.96:
            length, source = rng.randrange(1, 64), rng.randrange(len(changed))
            piece = changed[source : source + length]
            changed[at : at + len(piece)] = piece
        elif action < 0.98:
            del changed[at : at + rng.randrange(1, 16)]
            changed = changed or bytearray(1)
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(changed)


def mutate_tail(data: bytes, rng: random.Random) -> bytes:
    """Mutate as mutate_bytes does, but keep the first byte, which chooses the meaning of the others."""
    return data[:1] + mutate_bytes(data[1:], rng)


def parsed_json(data: bytes) -> Any:
    """Return the content of a JSON text. Return None when it is not JSON or could not be written again."""
    try:
        content = json.loads(data)
        json.dumps(content, sort_keys=True)
    except (ValueError, RecursionError):
        return None
    return content
