"""Compute the name by which a run finds the tokens of an earlier run with the same text and settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.corpus.chats.template import uses_clock
from pipeline.corpus.tokenizer_calls import TOKENIZATION_RULE
from pipeline.sources.corpus import Corpus

# Settings that decide the tokens, their order, and how they are cut into blocks.
LAYOUT_SETTINGS = (
    "block_size",
    "document_separator",
    "max_tokens",
    "seed",
    "text_column",
    "validation_fraction",
)
# Settings of conversations and pairs. They are recorded only where they are used: other caches keep their bytes.
_CHAT_SETTINGS = ("messages_column", "prompt_column", "completion_column")


def layout_settings(config: PrecomputeConfig) -> dict[str, Any]:
    """Return the settings that decide the tokens, their order, and how they are cut into blocks."""
    names = [*LAYOUT_SETTINGS, *(name for name in _CHAT_SETTINGS if getattr(config, name) is not None)]
    settings = {name: getattr(config, name) for name in names}
    return settings | ({"on_bad_row": config.on_bad_row} if config.on_bad_row != "stop" else {})


def chat_facts(tokenizer: Any, config: PrecomputeConfig) -> dict[str, str | None]:
    """Return what renderings depend on, besides messages: the template's sha256, and the date if it prints one.

    Return nothing when no column may hold conversations, or there is no template.
    """
    template = tokenizer.chat_template
    if not config.may_hold_chats or template is None:
        return {}
    facts = {"chat_template_sha256": hashlib.sha256(json.dumps(template).encode()).hexdigest()}
    return facts | ({"chat_date": config.chat_date} if uses_clock(template) else {})


def tokenization_key(
    corpus: Corpus, tokenizer: Any, config: PrecomputeConfig, beginning_ids: tuple[int, ...] = ()
) -> str:
    """Return 16 hex digits of a sha256 over everything that the tokenized text depends on."""
    facts = {
        "corpus": corpus.fingerprint,
        "rule": TOKENIZATION_RULE,
        "tokenizer": repr(tokenizer.backend_tokenizer.to_str())
        if tokenizer.is_fast
        else repr(sorted(tokenizer.get_vocab().items())),
        "settings": layout_settings(config) | chat_facts(tokenizer, config),
        "beginning_ids": beginning_ids,
        "prompts": [
            (s.prompt_column, s.max_new_tokens) for s in config.prompt_settings.values() if s.prompt_column is not None
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
