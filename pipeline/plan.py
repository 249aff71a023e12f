"""Which rows go into which shard: a pure function of configuration and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from pipeline.config import BeamsConfig, PrecomputeConfig, SamplesConfig
from pipeline.corpus.blocks import Blocks, PromptSet, prompts_from_blocks, prompts_from_column
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.producers.beams import BeamsProducer
from pipeline.producers.samples import SamplesProducer
from pipeline.producers.soft_targets import SoftTargetsProducer
from pipeline.teacher.model import Teacher
from storage.records.identity import SPLITS, CacheIdentity, ShardKey
from storage.rows import beams, samples, soft_targets
from storage.rows.kinds import KINDS

# 8 to 16 rows a batch cost 1.5 % of size and give range reads.
RECORD_BATCH_ROWS = 16


class Producer(Protocol):
    """Makes the rows of one kind."""

    tokens_per_row: int
    longest_prompt_tokens: int

    def num_rows(self, split: str) -> int:
        """Rows in a split."""

    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Rows [start, stop) in record batches of record_batch_rows rows, the last one perhaps shorter."""


@dataclass(frozen=True, kw_only=True)
class ShardRange:
    """Rows [first_row, end_row) of a shard."""

    key: ShardKey
    first_row: int
    end_row: int

    @property
    def num_rows(self) -> int:
        """Rows in it."""
        return self.end_row - self.first_row


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A cache whose plan is published: its shards, and what it takes to finish it when they are committed."""

    identity: CacheIdentity
    shards: list[ShardRange]
    tokenizer_files: list[str]


def make_producers(teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> dict[str, Producer]:
    """A producer for each kind asked for."""
    blocks = {split: Blocks(tokenized.documents[split], config.block_size) for split in SPLITS}
    vocab_size = teacher.vocab_size
    producers: dict[str, Producer] = {}
    for kind in (kind for kind in KINDS if kind in config.kinds):
        if kind == "soft_targets":
            schema = soft_targets.schema(vocab_size, config.block_size, config.soft_targets.temperatures)
            producers[kind] = SoftTargetsProducer(teacher, config, blocks, schema)
        elif kind == "samples":
            prompts = _prompts(tokenized, blocks, config.samples, config.validation_fraction)
            producers[kind] = SamplesProducer(teacher, config, prompts, samples.schema(vocab_size))
        else:
            prompts = _prompts(tokenized, blocks, config.beams, config.validation_fraction)
            producers[kind] = BeamsProducer(teacher, config, prompts, beams.schema(vocab_size))
    return producers


def planned_shards(producers: dict[str, Producer], shard_tokens: int) -> dict[str, dict[str, int]]:
    """Number of shards by kind and split."""
    return {
        kind: {split: -(-producer.num_rows(split) // rows_per_shard(producer, shard_tokens)) for split in SPLITS}
        for kind, producer in producers.items()
    }


def shard_ranges(producers: dict[str, Producer], shard_tokens: int) -> Iterator[ShardRange]:
    """Every shard with its rows, in order."""
    for kind, per_split in planned_shards(producers, shard_tokens).items():
        num_shard_rows = rows_per_shard(producers[kind], shard_tokens)
        for split, num_shards in per_split.items():
            for index in range(num_shards):
                first = index * num_shard_rows
                yield ShardRange(
                    key=ShardKey(kind=kind, split=split, index=index, num_shards=num_shards),
                    first_row=first,
                    end_row=min(first + num_shard_rows, producers[kind].num_rows(split)),
                )


def rows_per_shard(producer: Producer, shard_tokens: int) -> int:
    """Whole record batches that hold about shard_tokens tokens, at least one."""
    batches = shard_tokens // (producer.tokens_per_row * RECORD_BATCH_ROWS)
    return max(1, batches) * RECORD_BATCH_ROWS


def _prompts(
    tokenized: TokenizedCorpus,
    blocks: dict[str, Blocks],
    settings: SamplesConfig | BeamsConfig,
    validation_fraction: float,
) -> dict[str, PromptSet]:
    num_validation = min(round(settings.num_prompts * validation_fraction), settings.num_prompts - 1)
    wanted = {"train": settings.num_prompts - num_validation, "validation": num_validation}
    if settings.prompt_column is None:
        return {split: prompts_from_blocks(blocks[split], wanted[split], settings.prompt_tokens) for split in SPLITS}
    stores = tokenized.prompts[settings.prompt_column]
    return {split: prompts_from_column(stores[split], wanted[split]) for split in SPLITS}
