"""Where a text ends: the ids that tokenizer, config or generation config of a model name as its end.

A chat model often ends its turn with another token than the tokenizer's end-of-text, and names it in its generation
config alone. The end of a document is the one that the tokenizer names.
"""

from __future__ import annotations

from typing import Any

from storage.errors import EndBeyondVocabularyError

_TOKENIZER, _CONFIG, _GENERATION_CONFIG = "the tokenizer", "config.json", "generation_config.json"


def end_ids(tokenizer: Any, model: Any, vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end a text, the tokenizer's own first, the others ascending; () when none is named.

    vocab_size: rows of the model's output. Ids beyond them, which the model cannot give, are left out; see
    `unreachable_ends`. Raise EndBeyondVocabularyError when the tokenizer's own is one of them: it would end documents.
    """
    stated = _stated_ends(tokenizer, model)
    own = tokenizer.eos_token_id
    if own is not None and own >= vocab_size:
        raise EndBeyondVocabularyError(tokenizer.name_or_path, str(tokenizer.eos_token), own, vocab_size)
    return tuple(sorted((i for i in stated if i < vocab_size), key=lambda i: (i != own, i)))


def unreachable_ends(tokenizer: Any, model: Any, vocab_size: int) -> dict[int, str]:
    """Return the named ids beyond the model's rows, each with what names it."""
    return {i: named_by for i, named_by in _stated_ends(tokenizer, model).items() if i >= vocab_size}


def stated_ids(eos_token_id: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the ids of an eos_token_id as configs state it: one id, several, or null."""
    if eos_token_id is None:
        return ()
    return (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)


def as_stated(ids: tuple[int, ...]) -> int | list[int]:
    """Return ids as configs state them: one id alone, or a list."""
    return ids[0] if len(ids) == 1 else list(ids)


def _stated_ends(tokenizer: Any, model: Any) -> dict[int, str]:
    """Return each id that is named as an end, with what names it first."""
    found: dict[int, str] = {}
    for named_by, owner in (
        (_TOKENIZER, tokenizer),
        (_CONFIG, model.config.get_text_config(decoder=True)),
        (_GENERATION_CONFIG, model.generation_config),
    ):
        for token_id in stated_ids(getattr(owner, "eos_token_id", None)):
            found.setdefault(token_id, named_by)
    return found
