"""topk-jsonl: what vLLM and OpenAI-compatible servers answer, one object a line.

- `prompt_token_ids` and `prompt_logprobs` (vLLM): per token null or {id: {"logprob", "rank", "decoded_token"}}
- `token_ids` and `logprobs` (vLLM's outputs): the same for the continuation
- `logprobs` with `tokens`, `token_logprobs`, `top_logprobs` (completions), of the prompt too where it is echoed
- `logprobs` with `content`: [{"token", "logprob", "top_logprobs"}] (chat)

Where the prompt has no log-probabilities, its tokens are read and not taught.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.importing.errors import ImportRowError, MisalignedRowError
from storage.importing.formats.json_lines import answers, json_rows
from storage.importing.source_text import SourceText, joined
from storage.importing.tokenizer import ImportTokenizer

_NO_PROMPT = (
    "has log-probabilities of a continuation and no prompt, on which they depend; expected prompt_token_ids (vLLM: "
    "return_token_ids), an echoed prompt, or the prompt as text"
)


@dataclass(frozen=True)
class TokenTargets:
    """A token, the log-probabilities by id that the row lists for its place, and its own; None where there is none."""

    token_id: int
    logprobs: dict[int, float] | None
    own_logprob: float | None = None


def texts(path: Path, tokenizer: ImportTokenizer) -> Iterator[SourceText]:
    """Yield the texts of a file. Raise ImportRowError or ImportSourceError."""
    for where, row in json_rows(path):
        for answer in answers(row):
            yield _text(where, _tokens(where, answer, tokenizer))


def _text(where: str, tokens: list[TokenTargets]) -> SourceText:
    if not tokens:
        raise ImportRowError(where, "has no tokens; expected prompt_logprobs or logprobs")
    listed = [token.logprobs or {} for token in tokens[1:]]
    return SourceText(
        where=where,
        first_position=1,
        input_ids=np.array([token.token_id for token in tokens], dtype=np.int64),
        size=np.array([len(entries) for entries in listed], dtype=np.int64),
        ids=joined([list(entries) for entries in listed], np.int64),
        logprobs=joined([list(entries.values()) for entries in listed], np.float64),
        is_wanted=np.array([token.logprobs is not None for token in tokens[1:]], dtype=np.bool_),
        label_logprob=np.array(
            [np.nan if token.own_logprob is None else token.own_logprob for token in tokens[1:]], dtype=np.float64
        ),
        lists_labels=True,
    )


def _tokens(where: str, answer: dict[str, Any], tokenizer: ImportTokenizer) -> list[TokenTargets]:
    prompt = _prompt(where, answer, tokenizer)
    continuation = _continuation(where, answer, tokenizer)
    if continuation and continuation[0].logprobs is None:
        _require_same_prompt(where, prompt, continuation)
        return continuation
    if continuation and not prompt:
        raise ImportRowError(where, _NO_PROMPT)
    return prompt + continuation


def _require_same_prompt(where: str, prompt: list[TokenTargets], echoed: list[TokenTargets]) -> None:
    differing = [p for p, (a, b) in enumerate(zip(prompt, echoed, strict=False)) if a.token_id != b.token_id]
    if len(prompt) > len(echoed) or differing:
        place = differing[0] if differing else len(echoed)
        raise MisalignedRowError(where, f"position {place}: prompt_token_ids and the echoed prompt differ")


def _prompt(where: str, answer: dict[str, Any], tokenizer: ImportTokenizer) -> list[TokenTargets]:
    ids = answer.get("prompt_token_ids")
    if ids is None and isinstance(prompt := answer.get("prompt"), str | list):
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    logprobs = answer.get("prompt_logprobs")
    if logprobs is None:
        return [TokenTargets(token_id, None) for token_id in _ids(where, ids or [], "prompt_token_ids")]
    if ids is None:
        raise ImportRowError(where, "has prompt_logprobs and no prompt_token_ids (vLLM: return_token_ids)")
    return _by_id(where, _ids(where, ids, "prompt_token_ids"), logprobs, "prompt_logprobs", tokenizer)


def _continuation(where: str, answer: dict[str, Any], tokenizer: ImportTokenizer) -> list[TokenTargets]:
    match answer.get("logprobs"):
        case None:
            return []
        case list(listed):
            ids = _ids(where, answer.get("token_ids"), "token_ids")
            return _by_id(where, ids, listed, "logprobs", tokenizer, is_continuation=True)
        case {"content": list(content)}:
            return [_of_chat(f"{where}, content {c}", where, entry, tokenizer) for c, entry in enumerate(content)]
        case {"tokens": list(tokens), "token_logprobs": list(own), "top_logprobs": list(top)}:
            return _of_completion(where, tokens, own, top, tokenizer)
        case _:
            raise ImportRowError(
                where, "logprobs: expected a list, content, or tokens with token_logprobs and top_logprobs"
            )


def _by_id(
    where: str, ids: list[int], listed: Any, name: str, tokenizer: ImportTokenizer, *, is_continuation: bool = False
) -> list[TokenTargets]:
    """Return tokens whose probabilities are given by id, as vLLM gives them."""
    if not isinstance(listed, list) or len(listed) != len(ids):
        found = f"{len(listed)} positions" if isinstance(listed, list) else "no list"
        raise MisalignedRowError(where, f"{name}: {found} for {len(ids)} tokens, expected as many")
    if listed and listed[0] and not is_continuation:
        raise MisalignedRowError(
            where, f"{name} 0: has log-probabilities, expected null: nothing precedes the first token"
        )
    tokens = []
    for position, (token_id, entries) in enumerate(zip(ids, listed, strict=True)):
        place = f"{where}, {name} {position}"
        if entries is None and (position or is_continuation):
            raise ImportRowError(place, "is null, expected log-probabilities: only the first token of a text has none")
        logprobs = (
            None
            if not (entries or position or is_continuation)
            else _logprobs_by_id(place, token_id, entries, tokenizer)
        )
        tokens.append(TokenTargets(token_id, logprobs))
    return tokens


def _logprobs_by_id(place: str, token_id: int, entries: Any, tokenizer: ImportTokenizer) -> dict[int, float]:
    if not isinstance(entries, dict):
        raise ImportRowError(place, f"is {entries!r:.40}, expected an object of ids")
    logprobs: dict[int, float] = {}
    for key, entry in entries.items():
        listed_id = tokenizer.id_of(key, place) if not key.isdecimal() else int(key)
        if listed_id in logprobs:
            raise ImportRowError(place, f"lists id {listed_id} twice")
        logprobs[listed_id] = _number(place, entry.get("logprob") if isinstance(entry, dict) else entry)
    own = entries.get(str(token_id))
    if isinstance(own, dict):
        _check_own(place, token_id, own, logprobs, tokenizer)
    return logprobs


def _check_own(
    place: str, token_id: int, own: dict[str, Any], logprobs: dict[int, float], tokenizer: ImportTokenizer
) -> None:
    """Raise MisalignedRowError when a token's rank or text contradicts its log-probability or the tokenizer."""
    rank, text = own.get("rank"), own.get("decoded_token")
    num_above = sum(logprob > logprobs[token_id] for logprob in logprobs.values())
    if isinstance(rank, int) and num_above >= rank:
        raise MisalignedRowError(
            place, f"id {token_id} has rank {rank}, but {num_above} of the listed ids are more probable"
        )
    spelt = tokenizer.text_of(token_id)
    if isinstance(text, str) and "\ufffd" not in text + spelt and _bare(text) and _bare(text) != _bare(spelt):
        raise MisalignedRowError(
            place,
            f"id {token_id} is {text!r:.40} there and {spelt!r:.40} in {tokenizer.directory}: name the teacher's "
            "tokenizer",
        )


def _bare(text: str) -> str:
    """Return a token's text without the space before it, which some servers drop or spell as ▁ or Ġ."""
    return text.lstrip(" ▁Ġ")


def _of_completion(
    where: str, tokens: list[Any], own: list[Any], top: list[Any], tokenizer: ImportTokenizer
) -> list[TokenTargets]:
    if not len(tokens) == len(own) == len(top):
        raise MisalignedRowError(
            where,
            f"logprobs: {len(tokens)} tokens, {len(own)} token_logprobs and {len(top)} top_logprobs, expected as many",
        )
    found = []
    for t, (token, own_logprob, listed) in enumerate(zip(tokens, own, top, strict=True)):
        place = f"{where}, token {t}"
        if not isinstance(listed, dict | None):
            raise ImportRowError(place, f"top_logprobs is {listed!r:.40}, expected an object")
        found.append(_spelt(place, token, own_logprob, list((listed or {}).items()), tokenizer, is_first=t == 0))
    return found


def _of_chat(place: str, where: str, entry: Any, tokenizer: ImportTokenizer) -> TokenTargets:
    match entry:
        case {"token": token, "logprob": own, "top_logprobs": list(top)} if all(isinstance(t, dict) for t in top):
            pairs = [(one.get("token"), one.get("logprob")) for one in top]
            return _spelt(place, token, own, pairs, tokenizer)
    raise ImportRowError(where, f"{place.removeprefix(where + ', ')}: expected token, logprob and top_logprobs")


def _spelt(
    place: str, token: Any, own: Any, top: list[tuple[Any, Any]], tokenizer: ImportTokenizer, *, is_first: bool = False
) -> TokenTargets:
    """Return a token whose id, like those of its alternatives, is spelt as a text. The token is one of them."""
    token_id = tokenizer.id_of(token if isinstance(token, str) else "", place)
    if own is None and is_first:
        return TokenTargets(token_id, None)
    own_logprob = _number(place, own)
    logprobs: dict[int, float] = {}
    for text, logprob in top:
        listed_id = tokenizer.id_of(text if isinstance(text, str) else "", place)
        if listed_id in logprobs:
            raise ImportRowError(place, f"lists id {listed_id} twice")
        logprobs[listed_id] = _number(place, logprob)
    return TokenTargets(token_id, {token_id: own_logprob} | logprobs, own_logprob)


def _ids(where: str, ids: Any, name: str) -> list[int]:
    if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
        raise ImportRowError(where, f"{name} is {ids!r:.40}, expected a list of ids")
    return ids


def _number(place: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise ImportRowError(place, f"a log-probability is {value!r:.40}, expected a number")
    return float(value)
