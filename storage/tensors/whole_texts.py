"""Read texts that grow token by token without keys and values: every pass reads them from their beginning again.

This is slower than a key-value cache. It is right for every model: those that keep a recurrent state, those whose cache
is of a kind of its own, and those whose function depends on the length of the text.

Shape legend: N texts, T tokens read at once, L tokens so far, G texts of one length, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def read_whole_texts(last_of: Callable[[Tensor], Tensor], input_ids_NT: Tensor, mask_NL: Tensor, cache: Any) -> Tensor:
    """Append tokens to the texts in `cache` and return last_of each whole text [N, D].

    last_of: returns what the model gives [G, D] after the last of token ids [G, L]. Texts of one length are read
    together, so none is padded. mask_NL: 1 for a token, 0 for padding on the left. cache: a cache of transformers; it
    stores the token ids as if they were the keys of one layer, so its rows can be moved as ever.
    """
    ids_N1T1 = input_ids_NT[:, None, :, None]
    ids_NL = cache.update(ids_N1T1, ids_N1T1, 0)[0][:, 0, :, 0]
    lengths_N = mask_NL.sum(1)
    found: Tensor | None = None
    for length in sorted(set(lengths_N.tolist())):
        of_length_G = (lengths_N == length).nonzero()[:, 0]
        last_GD = last_of(ids_NL[of_length_G, -length:])
        if found is None:
            found = last_GD.new_zeros(len(ids_NL), last_GD.shape[1])
        found[of_length_G] = last_GD
    assert found is not None, "there is at least one text"
    return found
