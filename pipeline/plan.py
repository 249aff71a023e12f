"""Decide which rows go into which shard. The plan is a pure function of configuration and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.producers.producer import Producer
from pipeline.producers.table import PRODUCERS
from pipeline.teacher.model import Teacher
from storage.records.identity import SPLITS, CacheIdentity, ShardKey

# Record batches of 8 to 16 rows cost 1.5 % of the size and allow range reads.
RECORD_BATCH_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class ShardRange:
    """A shard, which holds rows [first_row, end_row) of its kind and split."""

    key: ShardKey
    first_row: int
    end_row: int

    @property
    def num_rows(self) -> int:
        """Number of rows in the shard."""
        return self.end_row - self.first_row


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A cache whose plan is published, the shards of the plan, and the tokenizer's files (paths in the cache).

    `Destination.finish` needs identity and tokenizer_files when all shards are committed.
    """

    identity: CacheIdentity
    shards: list[ShardRange]
    tokenizer_files: list[str]


@dataclass(frozen=True, kw_only=True)
class TokenizedText:
    """What --only tokenize made: tokens and documents by split, and facts as TokenizationCounts gives them."""

    num_tokens: dict[str, int]
    num_documents: dict[str, int]
    facts: dict[str, Any]


def summary_of(tokenized: TokenizedCorpus) -> TokenizedText:
    """Return what a tokenized corpus holds."""
    return TokenizedText(
        num_tokens={split: store.num_tokens for split, store in tokenized.documents.items()},
        num_documents={split: len(store.ends) for split, store in tokenized.documents.items()},
        facts=tokenized.counts.facts(),
    )


def make_producers(teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> dict[str, Producer]:
    """Return a producer for each kind in --kinds. Raises NoPromptsError."""
    return {
        kind: producer.from_text(teacher, tokenized, config)
        for kind, producer in PRODUCERS.items()
        if kind in config.kinds
    }


def planned_shards(producers: dict[str, Producer], shard_tokens: int) -> dict[str, dict[str, int]]:
    """Return the number of shards by kind and split."""
    return {
        kind: {split: -(-producer.num_rows(split) // rows_per_shard(producer, shard_tokens)) for split in SPLITS}
        for kind, producer in producers.items()
    }


def shard_ranges(producers: dict[str, Producer], shard_tokens: int) -> Iterator[ShardRange]:
    """Yield every shard with its rows, in order of kind, split and index."""
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
    """Return the rows of a full shard: as many record batches as shard_tokens tokens hold, at least one."""
    batches = shard_tokens // (producer.tokens_per_row * RECORD_BATCH_ROWS)
    return max(1, batches) * RECORD_BATCH_ROWS
