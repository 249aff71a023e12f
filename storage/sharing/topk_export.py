"""Write the soft targets of a cache as Parquet with top-k lists, for trainers that know nothing else.

Sampled tails and tail masses are lost, and the files say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from storage.disk.directories import publishing_path
from storage.disk.files import refusals
from storage.errors import ConfigError
from storage.reading.cache import Cache, open_cache
from storage.records.identity import SPLITS, ShardRecord
from storage.records.manifest import TOKENIZER_DIR
from storage.rows import soft_targets
from storage.rows.soft_targets import SoftTargetRows
from storage.sharing.topk_rows import Heads, TopkLayout, heads_of, topk_batch

_KIND = "soft_targets"
_METADATA_KEY = "teachonce"


@dataclass(kw_only=True)
class Lost:
    """What the lists do not hold.

    num_targets: taught targets. lost_mass_sum, lost_mass_max: the teacher's probability outside the lists. num_draws:
    sampled ids of tails. num_empty: targets whose list is empty, or filler alone.
    """

    num_targets: int = 0
    lost_mass_sum: float = 0.0
    lost_mass_max: float = 0.0
    num_draws: int = 0
    num_empty: int = 0

    def add(self, rows: SoftTargetRows, kept: Heads) -> None:
        """Count rows. kept: the entries that are exported."""
        valid = rows.is_valid_target.reshape(-1)
        mass_P = np.bincount(kept.position, weights=np.exp(kept.logprobs), minlength=len(valid))
        lost_mass = np.clip(1 - mass_P[valid], 0.0, 1.0)
        self.num_targets += len(lost_mass)
        self.lost_mass_sum += float(lost_mass.sum())
        self.lost_mass_max = max(self.lost_mass_max, float(lost_mass.max(initial=0.0)))
        self.num_draws += int(rows.tail_size.sum())
        self.num_empty += int((kept.size[valid] == 0).sum())

    def describe(self) -> str:
        """Say what is lost, in words."""
        mean = self.lost_mass_sum / max(self.num_targets, 1)
        drawn = f", in the cache {self.num_draws / max(self.num_targets, 1):.1f} sampled ids a target" * (
            self.num_draws > 0
        )
        empty = f"; {self.num_empty:,} targets have no entry at all" * (self.num_empty > 0)
        return (
            f"lost: the rest of each distribution, {mean:.4f} of its probability on average and up to "
            f"{self.lost_mass_max:.4f}{drawn}{empty}; a loss that renormalises these lists is biased by that"
        )


def export_topk(
    cache_dir: Path, out: Path, layout: TopkLayout, progress: Callable[[int], object] = lambda num_bytes: None
) -> Lost:
    """Write a directory with a Parquet file for each shard of soft targets, and the tokenizer; return what is lost.

    The directory appears when it is whole. `progress` receives the bytes of each shard.

    Raise ConfigError when `out` is not empty, MissingKindError for a cache without soft targets, the errors of reading
    a cache, WriteRefusedError when a write fails.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists and is not an empty directory; name another")
    cache = open_cache(cache_dir)
    cache.shards(_KIND, SPLITS[0])
    lost = Lost()
    with publishing_path(out) as staged:
        for record in (record for split in SPLITS for record in cache.manifest.shards_of(_KIND, split)):
            _write_shard(cache, record, staged, layout, lost)
            progress(record.shard_bytes)
        for source in sorted(cache.checked_tokenizer_dir().iterdir()):
            with refusals(out):
                (staged / TOKENIZER_DIR).mkdir(exist_ok=True)
                (staged / TOKENIZER_DIR / source.name).write_bytes(source.read_bytes())
    return lost


def _write_shard(cache: Cache, record: ShardRecord, out: Path, layout: TopkLayout, lost: Lost) -> None:
    path = out / Path(record.path).with_suffix(".parquet").name
    of_shard = Lost()
    shard = cache.open_shard(record)
    try:
        with refusals(path):
            out.mkdir(exist_ok=True)
            with pq.ParquetWriter(path, layout.schema, compression="zstd") as writer:
                for index in range(shard.num_record_batches):
                    rows = soft_targets.decode(shard.read_batch(index))
                    kept = heads_of(rows, layout.top_k)
                    lost.add(rows, kept)
                    of_shard.add(rows, kept)
                    writer.write_batch(topk_batch(rows, kept, layout))
                writer.add_key_value_metadata({_METADATA_KEY: json.dumps(_facts(cache, layout, of_shard))})
    finally:
        cache.close_shard(shard)


def _facts(cache: Cache, layout: TopkLayout, lost: Lost) -> dict[str, Any]:
    """Return what a file says of itself."""
    return {
        "teacher": cache.identity.teacher["id"],
        "data": cache.identity.data["source"],
        "vocab_size": cache.identity.vocab_size,
        "tokenizer_sha256": cache.identity.tokenizer.get("sha256"),
        "alignment": layout.alignment,
        "lost": lost.describe(),
        "num_targets": lost.num_targets,
        "lost_mass_mean": lost.lost_mass_sum / max(lost.num_targets, 1),
        "lost_mass_max": lost.lost_mass_max,
        "lost_draws": lost.num_draws,
    }
