"""A small tokenizer of every family, and texts full of places where one of them is easily cut wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
TOOL = "<tool_call>"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PARTS = [
    "the", " teacher", " once", "knew", " don't", "'ll", "'", "!!", "...", "=>", "a", "Zq", "x" * 12, "_", "-",
    " ", " ", " ", "  ", "     ", " " * 30, "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000",
    "7", "12", "345", "1234567", "3.14", "0" * 25, "你好", "世界", "，", "。", "한국", "각",
    "Ω", "e\u0301", "\u0301", "o\u0308\u0323", "é", "ﬁ", "İ", "ß", "👩\u200d👩\u200d👧", "🇫🇷", "😀", END, TOOL, "</s>",
]  # fmt: skip


def awkward_text(rng: random.Random, num_chars: int) -> str:
    """At least num_chars characters of words, spaces, digits, scripts, marks, emoji and control tokens."""
    parts: list[str] = []
    while num_chars > 0:
        parts.append(rng.choice(_PARTS))
        num_chars -= len(parts[-1])
    return "".join(parts)


_TRAINING_TEXT = (
    awkward_text(random.Random(0), 40_000)
    .translate({ord("Ω"): None})
    .replace(END, "")
    .replace(TOOL, "")
    .replace("</s>", "")
)


def _bpe_trainer(**options: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=900, max_token_length=12, show_progress=False, **options)


def byte_level(pattern: str | None = None, *, normalizer: Any = None, add_prefix_space: bool = False) -> Tokenizer:
    """Byte-level BPE, with GPT-2's pattern or another."""
    tokenizer = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pattern is None)
    words = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, bytes_of])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = _bpe_trainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([_TRAINING_TEXT], trainer)
    return tokenizer


def sentencepiece_bpe(prepend_scheme: str, *, split: bool = True) -> Tokenizer:
    """BPE with byte fallback; without `split` one word is the whole text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    trainer = _bpe_trainer(special_tokens=["<unk>", "<s>", "</s>", *_BYTES], limit_alphabet=60)
    tokenizer.train_from_iterator([_TRAINING_TEXT], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=split)
    return tokenizer


def llama() -> Tokenizer:
    """As Llama 2 is converted: spaces are marked by the normalizer, and no word is split off."""
    tokenizer = sentencepiece_bpe("always")
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def unigram(prepend_scheme: str) -> Tokenizer:
    """Unigram, which holds its control tokens in the model's own vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=500, unk_token="<unk>", special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([_TRAINING_TEXT], trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """WordPiece, which drops spaces and reads a word of more than 100 letters as one unknown token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([_TRAINING_TEXT], trainer)
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "gpt2 with a space in front": lambda: byte_level(add_prefix_space=True),
    "llama3": lambda: byte_level(_LLAMA_3),
    "qwen2": lambda: byte_level(_LLAMA_3.replace("{1,3}", ""), normalizer=normalizers.NFC()),
    "llama2": llama,
    "metaspace bpe": lambda: sentencepiece_bpe("first", split=False),
    "unigram first": lambda: unigram("first"),
    "unigram always": lambda: unigram("always"),
    "wordpiece": word_piece,
}


def tokenizer_of(family: str) -> Any:
    """A tokenizer of transformers with the control tokens END and `</s>`, and the token TOOL, which is none."""
    backend = FAMILIES[family]()
    backend.add_special_tokens([AddedToken(END, special=True), AddedToken("</s>", special=True)])
    backend.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    unk_token = "<unk>" if backend.token_to_id("<unk>") is not None else None
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, unk_token=unk_token)
