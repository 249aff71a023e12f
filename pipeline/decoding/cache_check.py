"""Find out whether a key-value cache gives what the whole text gives, before the first text is drawn."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.decoding.prefill import prefill
from pipeline.decoding.slot_cache import SlotCache
from pipeline.teacher.model import Teacher
from storage.progress import tell
from storage.tensors.isolation import unless_refused

SLOWER_WAY = "samples and beams read each text anew for every token, which is slower"
_SHORT_TEXT = 3
_NUM_STEPS = 2


@torch.inference_mode()
def choose_cache(teacher: Teacher, num_tokens: int) -> None:
    """Let the teacher read whole texts from now on if its key-value cache is wrong for texts of up to num_tokens.

    Compare the last steps of two texts in one batch, one of num_tokens and a short one, with the same texts read whole.
    A cache is wrong where left padding reaches a recurrent state, where it is of a kind of its own, or where numbers
    depend on the longest text of the batch.
    """
    lengths = sorted({min(_SHORT_TEXT, num_tokens), num_tokens})
    texts = np.split(np.random.default_rng(0).integers(0, teacher.vocab_size, sum(lengths)), lengths[:1])
    texts = [ids for ids in texts if len(ids) > _NUM_STEPS]
    if teacher.reads_whole_texts or not texts:
        return

    def whole() -> Tensor:
        return torch.cat([teacher.last_of_rows(teacher.to_device(ids[None])) for ids in texts])

    expected_ND = whole()
    found_ND = unless_refused(lambda: _last_by_cache(teacher, texts))
    is_right = found_ND is not None and teacher.is_rounding(found_ND, expected_ND, whole)
    teacher.reads_whole_texts = not is_right and not bool(expected_ND.isnan().any())
    if teacher.reads_whole_texts:
        tell(f"{teacher.name}: keys and values in a cache do not give what whole texts give: {SLOWER_WAY}")


def _last_by_cache(teacher: Teacher, texts: list[NDArray[np.int64]]) -> Tensor:
    """Return the hidden states [N, D] after the texts, whose last tokens are read one by one as if they were drawn."""
    prompts = [ids[:-_NUM_STEPS] for ids in texts]
    prefilled = prefill(teacher, prompts)
    longest = int(prefilled.lengths.max())
    cache = SlotCache(prefilled.cache, len(texts), longest_prompt=longest, spare_columns=_NUM_STEPS)
    cache.place(np.arange(len(texts)), prefilled.cache, prefilled.rows, prefilled.lengths)
    for step in range(-_NUM_STEPS, 0):
        mask_NL, positions_N1 = cache.open_column()
        ids_N1 = teacher.to_device(np.array([ids[step] for ids in texts])[:, None])
        hidden_ND = teacher.last_hidden(ids_N1, mask_NL, positions_N1, cache)
    return hidden_ND
