"""What the plan of an imported cache states: the source, its tokenizer, the settings, and what nobody knows."""

from __future__ import annotations

import platform
from importlib.metadata import version

from storage.importing.splits import RECORD_BATCH_ROWS, rows_per_shard, splits_of
from storage.importing.survey import Source, Survey
from storage.records.identity import NOT_STATED, SPLITS, CacheIdentity
from storage.rows.soft_targets import MAY_BE_UNKNOWN

PACKING_RECIPE = (
    "texts whole where they fit, each in the fullest of 16 open blocks; the rest of a block is unwanted filler"
)


def identity_of(source: Source, found: Survey, block_size: int, num_rows: dict[str, int]) -> CacheIdentity:
    """Return the identity of the cache. num_rows: blocks by split."""
    config, tokenizer = source.config, source.tokenizer
    per_shard = rows_per_shard(config.shard_tokens, block_size)
    begins = bool(tokenizer.beginning_ids) and found.begins_alike
    beginning: dict[str, object] = {"beginning_ids": tokenizer.beginning_ids} if begins else {}
    unknown = [name for name in MAY_BE_UNKNOWN if name != "label_logprob" or not found.knows_labels]
    return CacheIdentity(
        vocab_size=source.vocab_size,
        block_size=block_size,
        record_batch_rows=RECORD_BATCH_ROWS,
        temperatures=(1.0,),
        teacher={
            "id": config.teacher,
            "revision": None,
            "architecture": NOT_STATED,
            "num_parameters": 0,
            "context_length": max(found.num_tokens),
            "dtype": NOT_STATED,
            "weights_bytes": None,
            "weights_sha256": None,
        },
        tokenizer={
            "size": tokenizer.size, "eos_token_id": tokenizer.eos_token_id, "sha256": tokenizer.sha256, **beginning,
        },
        data={
            "source": config.source.name,
            "fingerprint": source.fingerprint,
            "licence": None,
            "packing": PACKING_RECIPE,
            "imported_from": config.format,
            "num_documents": len(found.num_tokens),
            "num_documents_skipped": found.num_skipped,
            "num_tokens": _num_tokens(found, config.validation_fraction),
        },
        config={
            "block_size": block_size,
            "shard_tokens": config.shard_tokens,
            "validation_fraction": config.validation_fraction,
            "soft_targets": {
                "top_k": found.top_k,
                "top_p": 1.0,
                "tail_weight": None,
                "temperatures": [1.0],
                "mantissa_bits": config.mantissa_bits,
                "is_wanted": True,
                "unknown_columns": unknown,
            },
        },
        software={
            "python": platform.python_version(),
            **{name: version(name) for name in ("teachonce", "tokenizers", "pyarrow")},
        },
        planned_shards={"soft_targets": {split: -(-num_rows[split] // per_shard) for split in SPLITS}},
    )  # fmt: skip


def _num_tokens(found: Survey, fraction: float) -> dict[str, int]:
    """Return the tokens of the texts of each split."""
    counts = dict.fromkeys(SPLITS, 0)
    for split, num_tokens in zip(splits_of(len(found.num_tokens), fraction), found.num_tokens, strict=True):
        counts[split] += num_tokens
    return counts
