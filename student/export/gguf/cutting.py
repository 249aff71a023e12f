"""Cut text into tokens as llama.cpp does, from the fields of a GGUF file alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

Cut = Callable[[str], list[int]]
Fields = Callable[[str], Any]  # gives the content of tokenizer.ggml.NAME, None for a field that the file lacks

_CASELESS = "'(?i:[sdmt]|ll|ve|re)|"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CASELESS + _WORDS + r"\p{N}{1,3}" + _REST
# The splits of llama.cpp's src/llama-vocab.cpp, one after the other.
_SPLITS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "qwen2": [_CASELESS + _WORDS + r"\p{N}" + _REST],
    "llama-bpe": [_LLAMA3],
    "smaug-bpe": [_LLAMA3],
}


def cut_of(fields: Fields) -> Cut:
    """Return the function that cuts plain text as the file says, in which control tokens are characters."""
    tokens: list[str] = fields("tokens")
    types: list[int] = fields("token_type")
    id_of = {token: i for i, token in enumerate(tokens)}
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.USER_DEFINED]
    cut = _merges_cut(fields, id_of) if fields("model") == "gpt2" else _scores_cut(fields, id_of)
    return lambda text: [
        i for piece in _around(whole, text) for i in ([id_of[piece]] if piece in whole else cut(piece))
    ]


def _around(whole: list[str], text: str) -> list[str]:
    """Return the text in pieces: each of the tokens in `whole`, the longest first, and what is between them."""
    pattern = "|".join(re.escape(token) for token in sorted(whole, key=len, reverse=True))
    return [piece for piece in (re.split(f"({pattern})", text) if whole else [text]) if piece]


def _merges_cut(fields: Fields, id_of: Mapping[str, int]) -> Cut:
    """Return the cut of a byte-level BPE."""
    pre = fields("pre")
    merges = [(left, right) for left, right in (merge.split(" ") for merge in fields("merges"))]
    tokenizer = Tokenizer(models.BPE(dict(id_of), merges, ignore_merges=pre == "llama-bpe"))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS[pre]]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    return lambda text: list(tokenizer.encode(text).ids)


def _scores_cut(fields: Fields, id_of: Mapping[str, int]) -> Cut:
    """Return the cut that merges two neighbours whenever the result is a token, the highest score first."""
    scores: list[float] = fields("scores")
    adds_space = bool(fields("add_space_prefix"))

    def cut(text: str) -> list[int]:
        pieces = list((" " * adds_space + text).replace(" ", "▁"))

        def cost(i: int) -> float:
            token = id_of.get(pieces[i] + pieces[i + 1])
            return math.inf if token is None else -scores[token]

        costs = [cost(i) for i in range(len(pieces) - 1)]
        while costs and min(costs) < math.inf:
            i = costs.index(min(costs))
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            first, last = max(i - 1, 0), min(i + 1, len(pieces) - 1)
            costs[first : i + 2] = [cost(place) for place in range(first, last)]
        return [token for piece in pieces for token in _ids_of(piece, id_of)]

    return cut


def _ids_of(piece: str, id_of: Mapping[str, int]) -> list[int]:
    """Return the token of a piece, or those of its bytes."""
    if piece in id_of:
        return [id_of[piece]]
    return [id_of[f"<0x{byte:02X}>"] for byte in piece.encode()]
