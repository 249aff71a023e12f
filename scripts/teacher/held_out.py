"""Measure a teacher on text that it was not trained on, and let it write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.corpus.blocks import Blocks
from scripts.teacher.training import loss_sum

_MAX_BLOCKS = 400
_BATCH_BLOCKS = 8
PROMPTS = (
    "Return the", "This function", "Raise ValueError if", "The class", "Parse a string", "Open a file",
    "If the argument is", "A list of", "Create a new", "Note that",
)  # fmt: skip
TEMPERATURE = 0.8
NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a teacher makes of a text: over `num_tokens` targets, and in bits per UTF-8 byte of them."""

    text: str
    num_tokens: int
    perplexity: float
    bits_per_byte: float


@torch.no_grad()
def measure(model: Any, tokenizer: Any, blocks: Blocks, text: str) -> HeldOut:
    """Measure on all blocks, or on 400 of them, evenly spread. text: the name of what they hold."""
    num_blocks = min(len(blocks), _MAX_BLOCKS)
    chosen = [index * len(blocks) // num_blocks for index in range(num_blocks)]
    bytes_of_token = np.array([_num_bytes(tokenizer, token_id) for token_id in range(len(tokenizer))])
    nats, num_tokens, num_bytes = 0.0, 0, 0
    for first in range(0, num_blocks, _BATCH_BLOCKS):
        total, labels = loss_sum(model, blocks, chosen[first : first + _BATCH_BLOCKS], torch.float32)
        nats += float(total)
        num_tokens += len(labels)
        num_bytes += int(bytes_of_token[labels.numpy()].sum())
    return HeldOut(
        text=text,
        num_tokens=num_tokens,
        perplexity=math.exp(nats / num_tokens),
        bits_per_byte=nats / math.log(2) / num_bytes,
    )


def continuations(model: Any, tokenizer: Any, seed: int) -> list[tuple[str, str]]:
    """Return each of PROMPTS with what the teacher writes after it, at TEMPERATURE."""
    written = []
    for index, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed + index)
        asked = tokenizer(prompt, return_tensors="pt")
        room = model.config.n_positions - asked["input_ids"].shape[1]
        ids = model.generate(
            **asked, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
            max_new_tokens=min(room, NEW_TOKENS), pad_token_id=tokenizer.eos_token_id,
        )[0]  # fmt: skip
        text = tokenizer.decode(ids, skip_special_tokens=True)
        written.append((prompt, text[len(prompt) :]))
    return written


def _num_bytes(tokenizer: Any, token_id: int) -> int:
    """Return the bytes of a token of a byte-level BPE, whose every character is a byte. A special token is no text."""
    return 0 if token_id in tokenizer.all_special_ids else len(tokenizer.convert_ids_to_tokens(token_id))
