"""Import a cache: check all of the source, plan the shards, and write them as precompute does.

The source is read once to check and count it and once for each split, so memory does not grow with it (but for 8 bytes
a text). The same source and settings give the same bytes. Nothing is written before all of the source is checked.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from storage.disk.directories import remove_leftovers
from storage.errors import ConfigError
from storage.importing.blocks import Block, rows_of
from storage.importing.config import ImportConfig
from storage.importing.errors import ImportSourceError
from storage.importing.facts import identity_of
from storage.importing.packing import Packer, Piece
from storage.importing.source_text import CheckedText
from storage.importing.splits import RECORD_BATCH_ROWS, rows_per_shard, splits_of
from storage.importing.survey import Source, Survey, open_source, survey
from storage.progress import Progress
from storage.reading.cache import Cache, open_cache
from storage.records.identity import MAX_SHARDS, SPLITS, CacheIdentity, ShardKey
from storage.records.manifest import TOKENIZER_DIR
from storage.rows.soft_targets import MAY_BE_UNKNOWN, encode
from storage.writing.directory_destination import DirectoryDestination

Item = TypeVar("Item")
_KIND = "soft_targets"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The finished cache, what was found in its source, and how many texts were longer than a block."""

    cache: Cache
    found: Survey
    num_cut: int

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the source, in words."""
        found, remarks = self.found, []
        if found.num_skipped:
            remarks.append(f"{found.num_skipped:,} texts have nothing to teach and were left out")
        if found.num_scaled:
            remarks.append(
                f"at {found.num_scaled:,} targets the probabilities exceeded 1 by rounding and were scaled to 1"
            )
        if self.num_cut:
            remarks.append(
                f"{self.num_cut:,} texts are longer than a block and were cut, with less context after a cut"
            )
        unknown = " and ".join(MAY_BE_UNKNOWN[name] for name in self.cache.identity.unknown_columns)
        return [*remarks, f"does not state {unknown}: the cache says so"] if unknown else remarks


def import_cache(config: ImportConfig) -> Imported:
    """Make a cache of a source, or finish one that was begun.

    Raise ImportSourceError, ImportTokenizerError, ImportRowError or ConfigError before anything is written;
    CacheMismatchError when another cache was begun at --out; WriteRefusedError when a write fails.
    """
    destination = DirectoryDestination(config.out)
    destination.require_own()
    source = open_source(config)
    found = survey(source)
    block_size = config.block_size or max(2, max(found.num_tokens) - 1)
    num_rows = _num_rows(source, found, block_size)
    identity = destination.begin_or_resume(identity_of(source, found, block_size, num_rows))
    if identity.num_planned_shards > MAX_SHARDS:
        raise ConfigError(f"--shard-tokens {config.shard_tokens} makes more than {MAX_SHARDS:,} shards; raise it")
    names = _add_tokenizer(source, destination)
    with Progress(sum(num_rows.values()), "import", "blocks", quiet=config.quiet) as bar:
        for split, count in num_rows.items():
            _write_split(source, found, identity, split, count, destination, bar)
    destination.finish(identity, names)
    remove_leftovers(config.out)
    num_cut = sum(length > block_size + 1 for length in found.num_tokens)
    return Imported(cache=open_cache(config.out), found=found, num_cut=num_cut)


def _add_tokenizer(source: Source, destination: DirectoryDestination) -> list[str]:
    names = []
    for path in source.tokenizer.files:
        names.append(f"{TOKENIZER_DIR}/{path.name}")
        destination.add_file(names[-1], path.read_bytes())
    return names


def _num_rows(source: Source, found: Survey, block_size: int) -> dict[str, int]:
    """Return the number of blocks of each split, which follows from the lengths of the texts."""
    packers = {split: Packer[None](block_size + 1) for split in SPLITS}
    num_rows = dict.fromkeys(SPLITS, 0)
    for split, num_tokens in zip(_splits(source, found), found.num_tokens, strict=True):
        num_rows[split] += sum(1 for _ in packers[split].add(None, num_tokens))
    return {split: num_rows[split] + sum(1 for _ in packers[split].rest()) for split in SPLITS}


def _splits(source: Source, found: Survey) -> Iterator[str]:
    return splits_of(len(found.num_tokens), source.config.validation_fraction)


def _blocks(source: Source, found: Survey, block_size: int, split: str) -> Iterator[list[Piece[CheckedText]]]:
    packer = Packer[CheckedText](block_size + 1)
    kept = (text for text in source.texts() if text.has_target)
    for text, its_split in zip(kept, _splits(source, found), strict=False):
        if its_split == split:
            yield from packer.add(text, len(text.input_ids))
    yield from packer.rest()


def _write_split(
    source: Source,
    found: Survey,
    identity: CacheIdentity,
    split: str,
    num_rows: int,
    destination: DirectoryDestination,
    bar: Progress,
) -> None:
    """Write the shards of a split that are not committed."""
    num_shards = identity.planned_shards[_KIND][split]
    keys = [ShardKey(kind=_KIND, split=split, index=index, num_shards=num_shards) for index in range(num_shards)]
    if all(destination.read_commit(key) for key in keys):
        bar.skip(num_rows)
        return
    blocks = _blocks(source, found, identity.block_size, split)
    per_shard = rows_per_shard(source.config.shard_tokens, identity.block_size)
    for key in keys:
        first = key.index * per_shard
        count = min(per_shard, num_rows - first)
        part = _exactly(blocks, count, source)
        if destination.read_commit(key):
            bar.skip(sum(1 for _ in part))
        else:
            filler = source.tokenizer.eos_token_id or 0
            batches = _record_batches(part, identity, first, filler, bar)
            destination.stage_shard(identity, key, first, batches)()


def _exactly(items: Iterator[Item], count: int, source: Source) -> Iterator[Item]:
    """Yield the next `count` items; raise ImportSourceError when there are fewer."""
    for number in range(count):
        item = next(items, None)
        if item is None:
            raise ImportSourceError(
                str(source.config.source), f"changed while it was read: {count - number} blocks are missing"
            )
        yield item


def _record_batches(
    blocks: Iterable[Block], identity: CacheIdentity, first_row: int, filler_id: int, bar: Progress
) -> Iterator[pa.RecordBatch]:
    waiting = iter(blocks)
    while part := list(itertools.islice(waiting, RECORD_BATCH_ROWS)):
        rows = rows_of(part, first_row, identity.block_size, filler_id)
        if "label_logprob" in identity.unknown_columns:
            rows = dataclasses.replace(rows, label_logprob=None)
        yield encode(rows, identity.schema(_KIND), identity.mantissa_bits)
        first_row += len(part)
        bar.update(len(part))
