"""Collect what a plan records about its run: teacher, tokenizer, data, settings and software."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

from pipeline.config import PrecomputeConfig, stated_settings
from pipeline.corpus.tokenization import packing_recipe
from pipeline.corpus.tokenization_key import chat_facts, layout_settings
from pipeline.job import Job, Loaded
from pipeline.plan import RECORD_BATCH_ROWS, planned_shards
from pipeline.teacher.loading import quantization_of
from storage.records.identity import CacheIdentity
from storage.tensors.packing import Isolation


def facts_of(loaded: Loaded) -> dict[str, Any]:
    """Return the parts of the identity that are known before the text is read: teacher, source and settings."""
    config, teacher, corpus = loaded.config, loaded.teacher, loaded.corpus
    quantization = quantization_of(teacher.model)
    return {
        "vocab_size": teacher.vocab_size,
        "block_size": config.block_size,
        "record_batch_rows": RECORD_BATCH_ROWS,
        "temperatures": config.soft_targets.temperatures,
        "teacher": {
            "id": teacher.name,
            "revision": teacher.revision,
            "architecture": (teacher.model.config.architectures or [type(teacher.model).__name__])[0],
            "num_parameters": teacher.num_parameters,
            "context_length": teacher.context_length,
            "dtype": str(teacher.dtype).removeprefix("torch."),
            "weights_bytes": teacher.weights_bytes,
            "weights_sha256": teacher.weights_sha256,
            **({"quantization": quantization} if quantization else {}),
            **({} if teacher.isolation is Isolation.PACKED else {"isolation": teacher.isolation.value}),
        },
        "tokenizer": _tokenizer_facts(loaded),
        "data": {
            "source": corpus.source,
            "fingerprint": corpus.fingerprint,
            "licence": corpus.licence,
            "packing": packing_recipe(config, loaded.beginning_ids),
            **_chat_facts(teacher.tokenizer, config),
        },
        "config": _content_settings(config),
    }


def _tokenizer_facts(loaded: Loaded) -> dict[str, Any]:
    """Return the tokenizer's facts. Beginning and ends are stated only where they are not the usual ones."""
    tokenizer, end_ids = loaded.teacher.tokenizer, loaded.teacher.end_ids
    eos = tokenizer.eos_token_id
    facts = {"size": len(tokenizer), "eos_token_id": eos}
    if loaded.beginning_ids:
        facts["beginning_ids"] = list(loaded.beginning_ids)
    if end_ids != (() if eos is None else (eos,)):
        facts["end_ids"] = list(end_ids)
    return facts


def identity_of(job: Job, tokenizer_sha256: str) -> CacheIdentity:
    """Return the whole identity. tokenizer_sha256: `directory_sha256` of the tokenizer's saved files."""
    facts = facts_of(job)
    facts["tokenizer"] |= {"sha256": tokenizer_sha256}
    for kind, producer in job.producers.items():
        facts["config"][kind] |= producer.settings_of_text
    facts["data"] |= {
        **job.tokenized.counts.facts(),
        "longest_prompt_tokens": {
            kind: producer.longest_prompt_tokens
            for kind, producer in job.producers.items()
            if producer.longest_prompt_tokens
        },
        "num_tokens": {split: store.num_tokens for split, store in job.tokenized.documents.items()},
    }
    software = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("teachonce", "torch", "transformers", "pyarrow")},
    }
    planned = planned_shards(job.producers, job.config.shard_tokens)
    return CacheIdentity(**facts, software=software, planned_shards=planned)


def _chat_facts(tokenizer: Any, config: PrecomputeConfig) -> dict[str, Any]:
    """Return what renderings depend on. Prompts alone record no template: caches from before have none."""
    facts = chat_facts(tokenizer, config)
    return facts if config.marks_wanted else {name: facts[name] for name in facts if name == "chat_date"}


def _content_settings(config: PrecomputeConfig) -> dict[str, Any]:
    """Return the settings that decide what the rows hold, as JSON values for the manifest."""
    settings = layout_settings(config) | {"shard_tokens": config.shard_tokens}
    kinds = {kind: stated_settings(getattr(config, kind)) for kind in config.kinds}
    plain: dict[str, Any] = json.loads(json.dumps(settings | kinds))
    return plain
