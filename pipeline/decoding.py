"""Drawing texts from the teacher with a key-value cache, each text by its own seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from pipeline.teacher import Teacher
from storage.hashing import hash_uniform

# Finished rows are dropped from a batch once this share of it is idle; dropping copies the cache.
_IDLE_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Completion:
    """completion_ids [n] and completion_logprobs [n] (nats, the teacher's at temperature 1)."""

    completion_ids: NDArray[np.int64]
    completion_logprobs: NDArray[np.float32]
    finish_reason: str


@torch.inference_mode()
def draw_completions(
    teacher: Teacher,
    prompts: list[NDArray[Any]],
    seeds: NDArray[np.uint64],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> list[Completion]:
    """One completion per prompt; row i's draws are a function of seeds[i] and the step alone.

    A completion ends with the end-of-text token, which it holds (finish_reason "stop"), or after
    max_new_tokens ("length").
    """
    eos = teacher.tokenizer.eos_token_id
    input_ids, is_token = _left_pad(prompts)
    ids_R = teacher.to_device(input_ids)
    mask = teacher.to_device(is_token)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=teacher.model.config)
    alive = np.arange(len(prompts))
    drawn_ids: list[list[int]] = [[] for _ in prompts]
    drawn_logprobs: list[list[float]] = [[] for _ in prompts]
    is_done = np.zeros(len(prompts), dtype=bool)
    for step in range(max_new_tokens):
        hidden_RD = teacher.last_hidden(ids_R, mask, positions, cache)
        logprobs_RV = torch.log_softmax(teacher.logits(hidden_RD), dim=1)
        uniforms = torch.from_numpy(hash_uniform(seeds[alive], step)).to(teacher.device)
        next_ids = draw(logprobs_RV, uniforms, temperature=temperature, top_p=top_p)
        chosen = logprobs_RV.gather(1, next_ids[:, None])[:, 0].clamp(max=0.0)
        for row, token, logprob in zip(alive, next_ids.tolist(), chosen.tolist(), strict=True):
            if not is_done[row]:
                drawn_ids[row].append(token)
                drawn_logprobs[row].append(logprob)
                is_done[row] = token == eos
        ids_R, positions = next_ids[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        kept = np.flatnonzero(~is_done[alive])
        if len(kept) == 0:
            break
        if len(kept) <= (1 - _IDLE_SHARE) * len(alive):
            index = torch.from_numpy(kept).to(teacher.device)
            cache.batch_select_indices(index)
            ids_R, positions, mask, alive = ids_R[index], positions[index], mask[index], alive[kept]
    return [
        Completion(
            completion_ids=np.array(ids),
            completion_logprobs=np.array(logprobs, dtype=np.float32),
            finish_reason="stop" if done else "length",
        )
        for ids, logprobs, done in zip(drawn_ids, drawn_logprobs, is_done, strict=True)
    ]


def draw(logprobs_RV: Tensor, uniforms_R: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """One id per row [R] by inverting the running sum of probabilities in float64.

    With top_p < 1 only the nucleus counts (Holtzman et al. 2020, section 3.1): the smallest set of
    most probable tokens whose mass reaches top_p.
    """
    probs_RV = torch.softmax(logprobs_RV / temperature, dim=1)
    if top_p < 1.0:
        sorted_RV, order_RV = probs_RV.sort(dim=1, descending=True, stable=True)
        before_RV = sorted_RV.cumsum(1, dtype=torch.float64) - sorted_RV
        sorted_RV = sorted_RV.masked_fill(before_RV >= top_p, 0.0)
        probs_RV = torch.zeros_like(probs_RV).scatter(1, order_RV, sorted_RV)
    running_RV = probs_RV.cumsum(1, dtype=torch.float64)
    thresholds = uniforms_R[:, None] * running_RV[:, -1:]
    return torch.searchsorted(running_RV, thresholds, right=True)[:, 0].clamp(max=probs_RV.shape[1] - 1)


def batches_by_length(prompts: list[NDArray[Any]], batch_rows: int) -> list[NDArray[np.int64]]:
    """Indices of prompts in batches of like length, so that little is padded."""
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    return [order[first : first + batch_rows] for first in range(0, len(order), batch_rows)]


def _left_pad(prompts: list[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompts [R, longest] with zeros before the shorter ones, and 1 where a token stands."""
    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    is_token = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        is_token[row, longest - len(prompt) :] = 1
    return ids, is_token
