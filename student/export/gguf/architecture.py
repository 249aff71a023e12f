"""What the writer knows about one of llama.cpp's architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = Iterator[tuple[str, NDArray[np.float32]]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of llama.cpp's architectures, for models that transformers has under another name.

    name: llama.cpp's. problem(model): why llama.cpp would compute something else, as the rest of a sentence that
    begins with "it"; None if it would not. add_shape(writer, config): write the sizes and constants.
    weights(model): yield the weights under llama.cpp's names, matrices as [out, in]. A tied head is left out:
    llama.cpp then uses the embedding.
    """

    name: str
    problem: Callable[[Any], str | None]
    add_shape: Callable[[Any, Any], None]
    weights: Callable[[Any], Weights]


def float32_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return the model's weights by transformers' names."""
    return {name: weight.detach().float().cpu().numpy() for name, weight in model.state_dict().items()}
