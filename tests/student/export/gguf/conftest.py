"""Small students of Llama's, Mistral's and Qwen2's architectures with the tokenizers that such models have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from student.export.gguf.byte_level import LLAMA3_PATTERN, QWEN2_PATTERN
from tests.student.export.comparing import TEXT

# Constants that are the defaults of nothing: grouped heads, heads wider than the width has room for, a window that
# covers the context, all kinds of rotary scaling that llama.cpp has.
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-3}),
    "llama3": ("llama", {"num_key_value_heads": 1, "rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "swish"}),
    "linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 100.0}, "hidden_size": 40},
    ),
    "mistral": ("mistral", {"num_key_value_heads": 2, "head_dim": 24, "sliding_window": 64}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2 untied": (
        "qwen2",
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 99.0}},
    ),
}
TOKENIZERS = {"llama": "first", "mistral": "legacy", "biased": "split", "linear": "smollm"}
TOKENIZERS |= {"llama3": "llama-bpe", "qwen2": "qwen2", "qwen2 untied": "smaug-bpe"}


def sentencepiece(kind: str = "first", merges: list[tuple[str, str]] | None = None, **changes: Any) -> Any:
    """A BPE over characters with tokens for bytes, which puts <s> before a text.

    kind: how spaces become ▁: by a normalizer ("legacy", or "never" at the beginning), or by a pre_tokenizer.
    merges: in place of those that are learnt from TEXT.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([TEXT * 20], trainers.BpeTrainer(vocab_size=90, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    characters = [token for token in learnt["vocab"] if len(token) == 1]
    merges = [(left, right) for left, right in learnt["merges"]] if merges is None else merges
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    tokens += [left + right for left, right in merges] + changes.pop("more_tokens", [])
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>", **changes))
    if kind in ("legacy", "never"):
        prepend = [normalizers.Prepend("▁")] if kind == "legacy" else []
        tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=kind == "split")
    strip = [] if kind == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level(pre: str) -> Any:
    """A byte-level BPE, learnt from TEXT, with the split that llama.cpp calls `pre`, and a token of the user's own."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in ("gpt-2", "smollm"))
    patterns = {"qwen2": QWEN2_PATTERN, "llama-bpe": LLAMA3_PATTERN, "smaug-bpe": LLAMA3_PATTERN}
    first = [pre_tokenizers.Split(Regex(patterns[pre]), "isolated")] if pre in patterns else []
    first += [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, to_bytes]) if first else to_bytes
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT * 20], trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    wrapped.chat_template = "{{ messages[0].content }}"
    return wrapped


def make_tokenizer(kind: str) -> Any:
    """A tokenizer as one of the functions above makes it, or the class of transformers with the same merges."""
    if kind in ("LlamaTokenizer", "Qwen2Tokenizer"):
        like = sentencepiece() if kind == "LlamaTokenizer" else byte_level("qwen2")
        model = json.loads(like.backend_tokenizer.to_str())["model"]
        merges = [(left, right) for left, right in model["merges"]]
        return getattr(transformers, kind)(vocab=model["vocab"], merges=merges)
    return sentencepiece(kind) if kind in ("first", "legacy", "never", "split") else byte_level(kind)


def make_model(shape: str, vocab_size: int, **changes: object) -> Any:
    """A model with random weights, whose distributions are far from flat, whose biases and norms are no constants."""
    model_type, settings = SHAPES[shape]
    config = AutoConfig.for_model(
        model_type, **(_SIZES | {"vocab_size": vocab_size, "initializer_range": 0.15} | settings | changes)
    )
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model


@pytest.fixture(scope="session")
def rotary_students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student of each of SHAPES in a directory."""
    made = {}
    for shape in SHAPES:
        directory = tmp_path_factory.mktemp("rotary") / "student"
        tokenizer = make_tokenizer(TOKENIZERS[shape])
        tokenizer.save_pretrained(directory)
        make_model(shape, len(tokenizer) + 3).save_pretrained(directory)
        made[shape] = directory
    return made


@pytest.fixture(params=SHAPES)
def rotary_student(request: pytest.FixtureRequest, rotary_students: dict[str, Path]) -> Path:
    return rotary_students[request.param]
