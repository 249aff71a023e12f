"""Make small GPT-2 models, with random weights or to be trained, and byte-level tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from student.losses.fused_head import HeadLoss

EOS = "<|endoftext|>"
LABELS_ONLY = HeadLoss(divergence="forward_kl", unbiased=False, temperature=1.0, soft_weight=0.0, label_weight=1.0)
"""The loss of a model that learns from labels alone."""


def save_random_teacher(directory: Path, device: str = "cpu", dtype: str = "float32", /, **settings: Any) -> None:
    """Save a teacher with seeded random weights, and a byte-level tokenizer without merges.

    device: where the weights are drawn; dtype: in which format they are saved; settings: arguments of GPT2Config.
    Without eos_token_id no token ends a text.
    """
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = GPT2Config(**({"bos_token_id": None, "eos_token_id": None} | settings))
    with torch.device(device):
        model = GPT2LMHeadModel(config)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    save_byte_tokenizer(directory)


def save_byte_tokenizer(directory: Path) -> None:
    """Save a byte-level tokenizer without merges: the ids 0 to 255 are bytes, 256 is EOS."""
    vocabulary = {token: index for index, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), EOS])}
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS).save_pretrained(directory)


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE like GPT-2's on `texts`. Its token 0 is EOS."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_gpt2(
    *, vocab_size: int, layers: int, width: int, heads: int, context: int, eos_token_id: int, seed: int, device: str
) -> Any:
    """Return a new GPT-2 without dropout on `device`, initialised from `seed`."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
            activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=eos_token_id, eos_token_id=eos_token_id,
        )
    )  # fmt: skip
    if device == "cpu":
        model.set_attn_implementation("eager")  # the fastest backward pass on a CPU at these lengths
    return model.to(device)


def _byte_level(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
