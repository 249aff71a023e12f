"""How a tokenizer begins a text: the tokens, such as BOS, that it puts before every text.

A model that was trained with them says little of use without them, wherever in a document a piece stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.errors import NoBosTokenError

Bos = Literal["auto", "always", "never"]
_Ids = TypeVar("_Ids", list[int], NDArray[Any])


def beginning_ids(tokenizer: Any, bos: Bos) -> tuple[int, ...]:
    """Return the ids before every segment and prompt, () for none.

    auto: those that `tokenizer("x")` puts before the ids of "x"; what it appends is not part of them. always: the
    tokenizer's BOS token; raise NoBosTokenError when it names none. never: none.
    """
    if bos == "never":
        return ()
    if bos == "always":
        if tokenizer.bos_token_id is None:
            raise NoBosTokenError
        return (tokenizer.bos_token_id,)
    framed: list[int] = tokenizer("x")["input_ids"]
    plain: list[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    starts = [i for i in range(len(framed) - len(plain) + 1) if framed[i : i + len(plain)] == plain]
    return tuple(framed[: starts[0]]) if plain and starts else ()


def without_beginning(ids: _Ids, beginning_ids: Sequence[int]) -> _Ids:
    """Return the ids of a text without the beginning, which a chat template may have written already."""
    num_beginning = len(beginning_ids)
    return ids[num_beginning:] if np.array_equal(ids[:num_beginning], beginning_ids) else ids
