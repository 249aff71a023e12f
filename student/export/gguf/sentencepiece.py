"""A BPE over characters with bytes for unknown ones, such as sentencepiece's, as llama.cpp's "llama" vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from student.export.gguf.vocabulary import Vocabulary, merge_pairs, refusal, require_plain_bpe

SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


def byte_token(byte: int) -> str:
    """Return the token that stands for a byte of a character that is no token."""
    return f"<0x{byte:02X}>"


def read_sentencepiece(stated: Mapping[str, Any], name: str) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json with byte_fallback.

    Raise NotExportableError unless llama.cpp, which merges two neighbours whenever the result is a token, would merge
    exactly the pairs of `merges`, in their order.
    """
    model = stated["model"]
    require_plain_bpe(model, name)
    if model.get("ignore_merges"):
        raise refusal(name, "it takes a whole text that is a token before any merge (ignore_merges)")
    missing = [byte_token(byte) for byte in range(256) if byte_token(byte) not in model["vocab"]]
    if missing:
        raise refusal(name, f"it has no token for the byte {missing[0]}")
    spaced = [token["content"] for token in stated["added_tokens"] if not token["special"] and _has_space(token)]
    if spaced:
        raise refusal(name, f"its added token {spaced[0]!r} has a space, which llama.cpp replaces in plain text alone")
    adds_space = _adds_space(stated, name)
    added = [token["content"] for token in stated["added_tokens"]]
    scores = _scores(merge_pairs(model), [*model["vocab"], *added], name)
    return Vocabulary(model="llama", pre="default", scores=scores, adds_space=adds_space)


def _adds_space(stated: Mapping[str, Any], name: str) -> bool:
    """Return whether text gets a space at its beginning, from how normalizer and pre_tokenizer replace spaces by ▁."""
    normalizer, splitter = stated["normalizer"], stated["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if splitter is None and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        return steps != [_REPLACE]
    if normalizer is not None or (splitter or {}).get("type") != "Metaspace" or splitter["replacement"] != SPACE:
        raise refusal(name, "it replaces spaces otherwise than sentencepiece (normalizer, pre_tokenizer)")
    added = {token["content"] for token in stated["added_tokens"]}
    inside = [token for token in stated["model"]["vocab"] if SPACE in token[1:] and token not in added]
    if splitter["split"] and inside:
        raise refusal(name, f"it splits text at spaces, and has a token with one inside ({inside[0]!r})")
    return bool(splitter["prepend_scheme"] != "never")


def _has_space(token: Mapping[str, Any]) -> bool:
    return " " in token["content"] or SPACE in token["content"]


def _scores(pairs: Sequence[tuple[str, str]], tokens: Sequence[str], name: str) -> dict[str, float]:
    """Return −r for each token that merges make of its own characters, where r is the rank of the last of them.

    A pair can become neighbours in a text only if it does so in the characters of its token alone. So where merges of
    these end with a single token, the last merge is the only one that ever gives that token. Where they end with two,
    llama.cpp would merge those. Where they end with more, it never gets there.
    """
    rank_of = {pair: rank for rank, pair in enumerate(pairs)}
    scores = {}
    for token in tokens:
        pieces, last_rank = _merge(list(token), rank_of)
        if len(pieces) == 2:
            raise refusal(name, f"its merges do not join {pieces[0]!r} and {pieces[1]!r}, and {token!r} is a token")
        if len(pieces) == 1 and last_rank is not None:
            scores[token] = -float(last_rank)
    return scores


def _merge(pieces: list[str], rank_of: Mapping[tuple[str, str], int]) -> tuple[list[str], int | None]:
    """Merge neighbours, the lowest rank first and the leftmost of equals; return the pieces and the last rank."""
    last_rank = None
    while True:
        ranks = [(rank_of[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in rank_of]
        if not ranks:
            return pieces, last_rank
        last_rank, i = min(ranks)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
