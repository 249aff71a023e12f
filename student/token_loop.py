"""Draw tokens from a student one after the other, with its key-value cache: the one loop for all of its texts.

Shape legend: N texts, U distinct prompts, T tokens read at once, L tokens read so far, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from storage.tensors.isolation import is_rounding, unless_refused
from storage.tensors.model_facts import context_length_of, rescaled_beyond
from storage.tensors.nucleus import draw_ids, draw_uniforms
from storage.tensors.padding import distinct_prompts, left_pad, padded_positions
from storage.tensors.whole_texts import read_whole_texts
from student.errors import BrokenStudentError

_TRIAL_STEPS, _TRIAL_TOKENS = 2, 32
# Once the two texts of the trial are read, one goes on twice, as a prompt with several draws does.
_TRIAL_ROWS = [1, 0, 1]


def draw_tokens(
    model: Any, prompts: Sequence[NDArray[np.int64]], seeds: Sequence[int], *, temperature: float, top_p: float
) -> Iterator[list[int]]:
    """Yield the next token of each of N texts, step by step, until the caller stops.

    prompts: N arrays of token ids; seeds: N integers in [0, 2^64). Temperature 0 takes the most probable token.

    The first step reads each distinct prompt once. Each later step reads the tokens drawn last, so k steps take
    len(prompt) + k − 1 positions of the student's context. The random number of text i at a step is a function of
    seeds[i] and the step alone. The teacher draws with the same function, so a student that equals its teacher writes
    the same texts. Texts drawn together differ from texts drawn alone only where a rounding difference changes which
    token is drawn.

    Raise BrokenStudentError when logits are not finite.
    """
    seeds_N = np.array(seeds, dtype=np.uint64)
    distinct, rows = distinct_prompts(prompts)
    ids_UT, mask_UT = (torch.from_numpy(array).to(model.device) for array in left_pad(distinct))
    longest = max(len(prompt) for prompt in prompts)
    read = _read_whole if _reads_whole_texts(model, longest) else _read
    logits_UV, past = read(model, ids_UT, mask_UT, None)
    rows_N = torch.from_numpy(rows).to(model.device)
    past.batch_select_indices(rows_N)
    logits_NV, mask_NL = logits_UV[rows_N], mask_UT[rows_N]
    for step in itertools.count():
        if not bool(logits_NV.isfinite().all()):
            raise BrokenStudentError(model.name_or_path)
        if temperature == 0:
            ids_N = logits_NV.argmax(1)
        else:
            uniforms_N = draw_uniforms(seeds_N, step, logits_NV.device)
            ids_N = draw_ids(torch.log_softmax(logits_NV, dim=1), uniforms_N, temperature=temperature, top_p=top_p)
        yield ids_N.tolist()
        mask_NL = functional.pad(mask_NL, (0, 1), value=1)
        logits_NV, past = read(model, ids_N[:, None], mask_NL, past)


def collect_texts(steps: Iterator[list[int]], end_ids: Collection[int]) -> list[list[int]]:
    """Return the token ids of each text up to the first of `end_ids`, which is included; stop when all have ended.

    steps: the tokens of all texts at each step; end_ids: none if no text ends early.
    """
    texts: list[list[int]] = []
    for tokens in steps:
        texts = texts or [[] for _ in tokens]
        for ids, token in zip(texts, tokens, strict=True):
            if not ids or ids[-1] not in end_ids:
                ids.append(token)
        if all(ids[-1] in end_ids for ids in texts):
            break
    return texts


@torch.inference_mode()
def _read(model: Any, input_ids_NT: Tensor, mask_NL: Tensor, past: Any) -> tuple[Tensor, Any]:
    """Return the logits after the last token read [N, V] float32, and the keys and values so far.

    mask_NL: 1 for a token, 0 for padding on the left.
    """
    positions_NL = padded_positions(mask_NL)
    output = model(
        input_ids=input_ids_NT,
        attention_mask=mask_NL,
        position_ids=positions_NL[:, -input_ids_NT.shape[1] :],
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float(), output.past_key_values


@torch.inference_mode()
def _read_whole(model: Any, input_ids_NT: Tensor, mask_NL: Tensor, past: Any) -> tuple[Tensor, Any]:
    """The same without keys and values: `past` holds the texts so far, which the student reads from their beginning."""
    past = DynamicCache() if past is None else past
    return read_whole_texts(functools.partial(_last_logits, model), input_ids_NT, mask_NL, past), past


def _last_logits(model: Any, input_ids_NL: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=input_ids_NL, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    return logits


@torch.inference_mode()
def _reads_whole_texts(model: Any, longest_prompt: int) -> bool:
    """Return whether the student's key-value cache is wrong, as a recurrent state is; keep the answer with the model.

    Compare the last steps of a short and a longer text in one batch with the same texts read whole.
    """
    if not hasattr(model, "reads_whole_texts"):
        num_tokens = max(longest_prompt + _TRIAL_STEPS, rescaled_beyond(model) + 1, _TRIAL_TOKENS)
        lengths = [_TRIAL_STEPS + 1, min(num_tokens, context_length_of(model))]
        texts = [np.arange(1, length + 1) * 7 % len(model.get_output_embeddings().weight) for length in lengths]
        model.reads_whole_texts = lengths[1] > lengths[0] and not _is_cache_right(model, texts)
    found: bool = model.reads_whole_texts
    return found


def _is_cache_right(model: Any, texts: list[NDArray[np.int64]]) -> bool:
    def whole() -> Tensor:
        rows = (torch.from_numpy(texts[row][None]).to(model.device) for row in _TRIAL_ROWS)
        return torch.cat([_last_logits(model, ids_1L) for ids_1L in rows])

    def by_cache() -> Tensor:
        ids_NT, mask_NT = (torch.from_numpy(array).to(model.device) for array in left_pad(texts))
        stop = ids_NT.shape[1] - _TRIAL_STEPS
        logits_NV, past = _read(model, ids_NT[:, :stop], mask_NT[:, :stop], None)
        rows_R = torch.tensor(_TRIAL_ROWS, device=model.device)
        past.batch_select_indices(rows_R)
        ids_NT, mask_NT = ids_NT[rows_R], mask_NT[rows_R]
        for end in range(stop + 1, ids_NT.shape[1] + 1):
            logits_NV, past = _read(model, ids_NT[:, end - 1 : end], mask_NT[:, :end], past)
        return logits_NV

    expected_NV, found_NV = whole(), unless_refused(by_cache)
    if bool(expected_NV.isnan().any()):
        return True
    return found_NV is not None and is_rounding(model, found_NV, expected_NV, whole)
