"""The text of a completion: what decoding prompt and completion as a whole adds to the decoded prompt.

Decoding a completion alone is wrong in most families of tokenizers. sentencepiece drops the space of the first word, a
character whose bytes lie on both sides of the border is lost, and WordPiece's clean-up glues punctuation to the word
before it. Let P be the decoded prompt, W the decoded prompt and completion, and C their longest common prefix. Then the
text is W without C. It follows P, except where the completion changes the end of P: an unfinished character, which is
U+FFFD in P, and spaces that clean-up removes. The text then begins with the changed end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# A decoder writes this for bytes that are not, or not yet, a whole character.
_REPLACEMENT = "\ufffd"
# Bytes as sentencepiece's byte fallback writes them. If a run of them is not valid UTF-8, each becomes U+FFFD, so that
# one more byte may change the text of the whole run.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# The last words with the white space before them, which clean-up may still change: a later " t" makes "do n '" "don't".
_LAST_WORDS = re.compile(r"(\s*\S+){0,2}\s*\Z")


def completion_text(
    tokenizer: Any, prompt_ids: Iterable[int], completion_ids: Iterable[int], *, skip_special_tokens: bool = True
) -> str:
    """Return the text of a completion (see above)."""
    prompt, completion = [int(i) for i in prompt_ids], [int(i) for i in completion_ids]
    before = tokenizer.decode(prompt, skip_special_tokens=skip_special_tokens)
    whole: str = tokenizer.decode(prompt + completion, skip_special_tokens=skip_special_tokens)
    return whole[_num_common(before, whole) :]


def stream_completion(tokenizer: Any, prompt_ids: Iterable[int], completion_ids: Iterable[int]) -> Iterator[str]:
    """Yield completion_text in pieces, each as soon as no later token can change it. None is empty."""
    ids = [int(i) for i in prompt_ids]
    before: str = tokenizer.decode(ids, skip_special_tokens=True)
    num_shown, whole, skipped = 0, before, _skipped_ids(tokenizer)
    for token in completion_ids:
        ids.append(int(token))
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        settled = whole[: _num_settled(tokenizer, skipped, ids, whole)]
        num_shown = max(num_shown, _num_common(before, settled))
        if len(settled) > num_shown:
            yield settled[num_shown:]
            num_shown = len(settled)
    num_shown = max(num_shown, _num_common(before, whole))
    if len(whole) > num_shown:
        yield whole[num_shown:]


def _num_common(one: str, other: str) -> int:
    """Return the length of the longest common prefix."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _num_settled(tokenizer: Any, skipped: frozenset[int], ids: Sequence[int], whole: str) -> int:
    """Return how many characters of `whole`, the decoded ids, no later token can change.

    skipped: ids that decoding leaves out, so that a run of bytes may go on behind them.
    """
    num_settled = len(whole.rstrip(_REPLACEMENT))
    if tokenizer.clean_up_tokenization_spaces:
        num_settled = min(num_settled, len(_LAST_WORDS.sub("", whole)))
    num_ids, ends_in_bytes = len(ids), False
    while num_ids:
        token = tokenizer.convert_ids_to_tokens(ids[num_ids - 1])
        is_byte = bool(token and _BYTE.fullmatch(token))
        if not is_byte and token is not None and ids[num_ids - 1] not in skipped:
            break
        num_ids, ends_in_bytes = num_ids - 1, ends_in_bytes or is_byte
    if ends_in_bytes:
        num_settled = min(num_settled, _num_common(whole, tokenizer.decode(ids[:num_ids], skip_special_tokens=True)))
    return num_settled


def _skipped_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that decoding without special tokens leaves out."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added.union(tokenizer.all_special_ids))
