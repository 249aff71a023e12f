"""Make up what a run over 10^12 tokens leaves apart from its shards: tokens, plan, commit records and manifest.

storage itself writes all records. Shards and the token file are sparse files of the real length, which take no space on
the disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.corpus.token_store import TokenStore, TokenWriter
from scripts.support.caches import RECORD_BATCH_ROWS, made_up_identity
from storage.disk.files import link_or_copy
from storage.records.commits import write_commit, write_plan
from storage.records.identity import CacheIdentity, ShardKey, ShardRecord
from storage.records.manifest import Manifest, read_manifest, write_manifest
from storage.writing.card_and_manifest import write_card_and_manifest

VOCAB_SIZE = 50_257
BLOCK_SIZE = 512
# 64,000 shards of 1,904 record batches hold 1.0002e12 tokens.
ROWS_PER_SHARD = 1904 * RECORD_BATCH_ROWS
TOKENS_PER_SHARD = ROWS_PER_SHARD * (BLOCK_SIZE + 1)
# docs/targets.md: the whole row, with V = 50,257 and 3.3 nats of entropy.
BYTES_PER_TOKEN = 33.6
_ENTROPY_NATS, _LABEL_NLL_NATS = 3.3, 3.4


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """Directories of the made-up caches and tokens.

    finished: a cache without its shards. begun: the same cache when the first half of its shards was committed.
    committed: the same cache when all shards were committed, before the manifest. other: a cache of the same size from
    another text, without shards and commit records. tokens: a corpus with as many tokens as the cache. scratch: an
    empty directory for the measurements.
    """

    num_shards: int
    finished: Path
    begun: Path
    committed: Path
    other: Path
    tokens: Path
    scratch: Path


def make_up(directory: Path, num_shards: int) -> MadeUp:
    """Write all of it in an empty directory."""
    made_up = MadeUp(
        num_shards=num_shards,
        **{name: directory / name for name in ("finished", "begun", "committed", "other", "tokens", "scratch")},
    )
    identity = identity_of(num_shards)
    _write_finished(made_up.finished, identity)
    _write_begun(made_up.begun, made_up.finished, identity, num_shards // 2)
    _write_begun(made_up.committed, made_up.finished, identity, num_shards)
    _write_other(made_up.other, read_manifest(made_up.finished))
    _write_tokens(made_up.tokens, num_shards * TOKENS_PER_SHARD)
    made_up.scratch.mkdir()
    return made_up


def identity_of(num_shards: int) -> CacheIdentity:
    """Return the identity that the plan of the cache records."""
    return made_up_identity(num_shards * ROWS_PER_SHARD, BLOCK_SIZE, VOCAB_SIZE, num_shards=num_shards)


def record_of(key: ShardKey) -> ShardRecord:
    """Return a record with as many digits as a real one. It is a pure function of the key."""
    sha256 = hashlib.sha256(key.path.encode()).hexdigest()
    share = int(sha256[:13], 16) / 16**13  # a float64 in [0, 1)
    num_targets = ROWS_PER_SHARD * BLOCK_SIZE - int(share * ROWS_PER_SHARD)
    return ShardRecord(
        path=key.path,
        first_row_id=key.index * ROWS_PER_SHARD,
        num_rows=ROWS_PER_SHARD,
        num_tokens=TOKENS_PER_SHARD,
        num_targets=num_targets,
        entropy_sum_nats=(_ENTROPY_NATS + share) * num_targets,
        label_nll_sum_nats=(_LABEL_NLL_NATS + share) * num_targets,
        shard_bytes=int((0.99 + 0.02 * share) * BYTES_PER_TOKEN * TOKENS_PER_SHARD),
        sha256=sha256,
    )


def tokens_of(made_up: MadeUp) -> dict[str, TokenStore]:
    """Return the made-up corpus by split."""
    return {split: TokenStore(made_up.tokens / split, np.uint16) for split in ("train", "validation")}


def _write_finished(cache_dir: Path, identity: CacheIdentity) -> None:
    write_plan(cache_dir, identity)
    for key in identity.planned_keys():
        write_commit(cache_dir, record_of(key))
    write_card_and_manifest(cache_dir, identity, [record_of(key) for key in identity.planned_keys()], [])


def _write_begun(cache_dir: Path, finished: Path, identity: CacheIdentity, num_committed: int) -> None:
    write_plan(cache_dir, identity)
    for key in identity.planned_keys()[:num_committed]:
        shard = cache_dir / key.path
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.touch()
        os.truncate(shard, record_of(key).shard_bytes)
        link_or_copy(finished / key.commit_path, cache_dir / key.commit_path)


def _write_other(cache_dir: Path, finished: Manifest) -> None:
    identity = dataclasses.replace(finished.identity, data=finished.identity.data | {"fingerprint": "1" * 64})
    shards = tuple(
        dataclasses.replace(shard, sha256=hashlib.sha256(shard.sha256.encode()).hexdigest())
        for shard in finished.shards
    )
    write_plan(cache_dir, identity)
    write_manifest(cache_dir, Manifest(identity=identity, shards=shards, files=()))


def _write_tokens(directory: Path, num_tokens: int) -> None:
    """Write one document of `num_tokens` zeros, in a sparse file."""
    TokenWriter(directory / "validation", np.uint16).close()
    writer = TokenWriter(directory / "train", np.uint16)
    writer.num_tokens = num_tokens
    writer.end_document()
    writer.close()
    os.truncate(directory / "train" / "tokens.bin", num_tokens * np.dtype(np.uint16).itemsize)
