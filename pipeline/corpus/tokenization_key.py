"""A name for tokenized text, so that a run finds what an earlier run of the same text and settings left."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.corpus.sources import Corpus

# Settings that decide which tokens there are, their order, and how they are cut into blocks.
LAYOUT_SETTINGS = (
    "block_size",
    "document_separator",
    "max_tokens",
    "seed",
    "text_column",
    "validation_fraction",
)


def tokenization_key(corpus: Corpus, tokenizer: Any, config: PrecomputeConfig) -> str:
    """16 hex digits of a hash over everything that tokenized text depends on."""
    facts = {
        "corpus": corpus.fingerprint,
        "tokenizer": repr(tokenizer.backend_tokenizer.to_str())
        if tokenizer.is_fast
        else repr(sorted(tokenizer.get_vocab().items())),
        "settings": {name: getattr(config, name) for name in LAYOUT_SETTINGS},
        "prompts": [
            (s.prompt_column, s.max_new_tokens) for s in config.prompt_settings.values() if s.prompt_column is not None
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
