"""How llama.cpp cuts text into tokens, in the terms of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from student.errors import NotExportableError

# What a BPE of tokenizers may also do, and llama.cpp does not.
_BPE_EXTRAS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Contents of a tokenizer.json that llama.cpp reads.

    model: tokenizer.ggml.model, "gpt2" for a BPE over bytes, "llama" for a BPE over characters like sentencepiece's.
    pre: tokenizer.ggml.pre, how text is split before that. merges: pairs of tokens with a space between, for "gpt2".
    scores: of tokens that result from merges, the higher the earlier, for "llama".
    adds_space: whether a text gets a space at its beginning.
    """

    model: str
    pre: str
    merges: list[str] = field(default_factory=list)
    scores: Mapping[str, float] = field(default_factory=dict)
    adds_space: bool = False


def merge_pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges of a BPE in tokenizer.json, which states them as pairs or, before tokenizers 0.20, as text."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(left, right) for left, right in pairs]


def require_plain_bpe(model: Mapping[str, Any], name: str) -> None:
    """Raise NotExportableError unless a model of tokenizer.json is a BPE that merges as llama.cpp does."""
    if model["type"] != "BPE":
        raise refusal(name, f"its model is {model['type']}, expected BPE")
    for extra in _BPE_EXTRAS:
        if model.get(extra):
            raise refusal(name, f"it has {extra} {model[extra]!r}")


def refusal(name: str, problem: str) -> NotExportableError:
    """Return the error for a tokenizer that llama.cpp does not have. problem: what is so about it."""
    return NotExportableError(name, "gguf", f"has a tokenizer that llama.cpp would replace by another: {problem}")
