"""A byte-level BPE, such as GPT-2's, Llama 3's or Qwen2's, as llama.cpp's "gpt2" vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from student.export.gguf.vocabulary import Vocabulary, merge_pairs, refusal, require_plain_bpe

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = _CASELESS + r"\p{N}{1,3}" + _REST
QWEN2_PATTERN = _CASELESS + r"\p{N}" + _REST

_GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES_ALONE = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_EACH_DIGIT = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# How tokenizer.json states the steps of a split, whether a whole piece that is a token is taken before any merge
# (ignore_merges), and what llama.cpp calls the two together.
_SPLITS: list[tuple[list[dict[str, Any]], bool, str]] = [
    ([_GPT2_SPLIT], False, "gpt-2"),
    ([_EACH_DIGIT, _GPT2_SPLIT], False, "smollm"),
    ([_split(QWEN2_PATTERN), _BYTES_ALONE], False, "qwen2"),
    ([_split(LLAMA3_PATTERN), _BYTES_ALONE], True, "llama-bpe"),
    ([_split(LLAMA3_PATTERN), _BYTES_ALONE], False, "smaug-bpe"),
]


def read_byte_level(stated: Mapping[str, Any], name: str) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json; raise NotExportableError unless llama.cpp has its split.

    A normalizer NFC is let pass, as llama.cpp's converter does: it changes no text that is composed already.
    """
    model = stated["model"]
    require_plain_bpe(model, name)
    if (stated["normalizer"] or {"type": "NFC"}) != {"type": "NFC"}:
        raise refusal(name, f"its normalizer is {stated['normalizer']['type']}, expected none or NFC")
    steps, ignores = _steps(stated["pre_tokenizer"]), bool(model.get("ignore_merges"))
    pre = next((pre for known, flag, pre in _SPLITS if known == steps and flag == ignores), None)
    if pre is None:
        known = "GPT-2, SmolLM, Qwen2 or Llama 3"
        raise refusal(name, f"it splits text otherwise than the byte-level BPE of {known} (pre_tokenizer)")
    if not model["merges"]:
        raise refusal(name, "it has no merges")
    return Vocabulary(model="gpt2", pre=pre, merges=[" ".join(pair) for pair in merge_pairs(model)])


def _steps(splitter: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a split without settings that move offsets alone."""
    steps = splitter["pretokenizers"] if splitter and splitter["type"] == "Sequence" else [splitter or {"type": None}]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
