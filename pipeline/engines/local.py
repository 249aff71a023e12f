"""--engine local: this process makes every shard that is not committed and that no other process is making.

Any number of such processes, on any machines that share the directory or the URL, divide a cache among themselves. If a
process ends before its shard is committed, another process makes that shard.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import platform
import sys

from pipeline.config import PrecomputeConfig
from pipeline.engines.kind_progress import KindProgress
from pipeline.engines.shard_writing import write_missing_shards
from pipeline.plan import Begun, ShardRange
from pipeline.producers.producer import Producer
from pipeline.work.claims import Claims
from storage.progress import Progress
from storage.records.identity import CacheIdentity
from storage.writing.destinations import Destination


def write_shards(
    config: PrecomputeConfig, destination: Destination, producers: dict[str, Producer], begun: Begun
) -> None:
    """Make shards and return when every shard is committed, by this process or by others.

    Then read back the shards that the destination names, and make those again that are damaged.
    """
    to_prove = destination.look_up([shard.key for shard in begun.shards])
    _write_shards(config, destination, producers, begun.identity, begun.shards)
    if to_prove:
        with Progress(len(to_prove), "reading back", "shards", quiet=config.quiet) as bar:
            damaged = set(destination.prove(to_prove, bar.update))
        again = [shard for shard in begun.shards if shard.key in damaged]
        _write_shards(config, destination, producers, begun.identity, again)


def _write_shards(
    config: PrecomputeConfig,
    destination: Destination,
    producers: dict[str, Producer],
    identity: CacheIdentity,
    shards: list[ShardRange],
) -> None:
    waiting = in_order_of_host(shards, platform.node())
    has_printed = config.quiet
    with KindProgress(shards, quiet=config.quiet) as progress:
        while waiting:
            taken: list[ShardRange] = []
            for kind, of_kind in itertools.groupby(waiting, key=lambda shard: shard.key.kind):
                count = functools.partial(progress.count, kind)
                taken += write_missing_shards(destination, identity, producers[kind], of_kind, count)
            waiting = taken
            if waiting and not has_printed:
                print(f"waiting for {len(waiting)} shards that other processes are at", file=sys.stderr)
                has_printed = True
            if waiting:
                Claims.wait()


def in_order_of_host(shards: list[ShardRange], host: str) -> list[ShardRange]:
    """Return the shards, kind by kind, in an order that within a kind differs from host to host.

    So hosts that cannot see each other's claims seldom make the same shard.
    """

    def place(shard: ShardRange) -> bytes:
        return hashlib.sha256(f"{host} {shard.key.path}".encode()).digest()

    by_kind = itertools.groupby(shards, key=lambda shard: shard.key.kind)
    return [shard for _, of_kind in by_kind for shard in sorted(of_kind, key=place)]
