"""Tokens from a student, one after the other, with its key-value cache.

Shape legend: N continuations of one prompt, T tokens read at once, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from student.errors import BrokenStudentError


def draw_tokens(
    model: Any, prompt_ids: list[int], seeds: list[int], *, temperature: float, top_p: float
) -> Iterator[list[int]]:
    """The next token of each of N = len(seeds) continuations, step by step, until the caller stops asking.

    The first step reads the prompt and each later one the tokens drawn last, so that k steps take
    len(prompt_ids) + k − 1 places of the student's context. Continuation i depends on seeds[i] and on no other (but for
    rounding in matrix products of another size); on every device the draws are the processor's. Temperature 0 takes
    the most probable token. Raises BrokenStudentError for logits that are not finite.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    logits_NV, past = _read(model, torch.tensor([prompt_ids], device=model.device), None)
    past.batch_repeat_interleave(len(seeds))
    logits_NV = logits_NV.expand(len(seeds), -1)
    while True:
        if not bool(logits_NV.isfinite().all()):
            raise BrokenStudentError(model.name_or_path)
        tokens_N = _choose(logits_NV, generators, temperature, top_p)
        yield tokens_N.tolist()
        logits_NV, past = _read(model, tokens_N[:, None].to(model.device), past)


@torch.inference_mode()
def _read(model: Any, input_ids_NT: Tensor, past: Any) -> tuple[Tensor, Any]:
    """Logits after the last token read [N, V], and the keys and values so far."""
    output = model(input_ids=input_ids_NT, past_key_values=past, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].float(), output.past_key_values


def _choose(logits_NV: Tensor, generators: list[torch.Generator], temperature: float, top_p: float) -> Tensor:
    if temperature == 0:
        return logits_NV.argmax(1)
    scores_NV = logits_NV / temperature
    if top_p < 1:
        scores_NV = TopPLogitsWarper(top_p)(None, scores_NV)
    probabilities_NV = torch.softmax(scores_NV, dim=1).cpu()
    drawn = [
        torch.multinomial(probabilities_V, 1, generator=generator)
        for probabilities_V, generator in zip(probabilities_NV, generators, strict=True)
    ]
    return torch.cat(drawn)
