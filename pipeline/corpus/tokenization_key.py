"""Compute the name by which a run finds the tokens of an earlier run with the same text and settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.config import PrecomputeConfig
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


def tokenization_key(corpus: Corpus, tokenizer: Any, config: PrecomputeConfig) -> str:
    """Return 16 hex digits of a sha256 over everything that the tokenized text depends on."""
    facts = {
        "corpus": corpus.fingerprint,
        "rule": TOKENIZATION_RULE,
        "tokenizer": repr(tokenizer.backend_tokenizer.to_str())
        if tokenizer.is_fast
        else repr(sorted(tokenizer.get_vocab().items())),
        "settings": {name: getattr(config, name) for name in LAYOUT_SETTINGS},
        "prompts": [
            (s.prompt_column, s.max_new_tokens) for s in config.prompt_settings.values() if s.prompt_column is not None
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
