"""The targets of the fuzzer: for each, undamaged inputs and a function that reads one input."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
import zstandard

from scripts.fuzz.config import Name
from scripts.fuzz.mutators import mutate_json, mutate_tail, parsed_json
from scripts.fuzz.rules import KINDS, assert_manifest_rules, assert_row_rules
from scripts.support.arrow_file import stored_as_it_is
from storage import RowStream, open_cache, verify_cache
from storage.errors import TeachonceError
from storage.reading.inspection import render_summary, summarize
from storage.records.commits import read_commit, read_plan
from storage.records.identity import PLAN_NAME
from storage.records.manifest import MANIFEST_NAME
from storage.shards.shard import Shard, batch_stats
from storage.sharing.archive import pack, unpack

_MOST_ARROW_BYTES = 512 << 20

# First bytes of a zstd frame of teachonce-cache, and of the skippable frame at its end that holds its sha256.
_FRAME_HEADER = bytes.fromhex("28b52ffd0478")
_TRAILER_HEADER = bytes.fromhex("502a4d1820000000")
_RAW_BLOCK_BYTES = 1 << 17


@dataclass(frozen=True)
class Target:
    """A target: undamaged inputs, a mutation, and a reader.

    read: raises a TeachonceError, or AssertionError when the data that it read break a rule.
    """

    seeds: list[bytes]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], None]

    def outcome(self, data: bytes) -> str:
        """Read an input and return the outcome: "read", or the class of the TeachonceError.

        Raises AssertionError when a rule is broken, a message has several lines, or Arrow allocated too much memory.
        """
        try:
            self.read(data)
            found, message = "read", ""
        except TeachonceError as error:
            found, message = type(error).__name__, str(error)
        assert "\n" not in message, message
        most_bytes = pa.default_memory_pool().max_memory()
        assert most_bytes <= _MOST_ARROW_BYTES, f"Arrow allocated {most_bytes} bytes"
        return found


def make_target(name: Name, cache_dir: Path) -> Target:
    """Return the target `name`. `cache_dir` is an undamaged cache that the target may damage."""
    make = {
        "manifest": _manifest_target,
        "commit": _commit_target,
        "arrow": _arrow_target,
        "stream": _stream_target,
        "archive": _archive_target,
    }[name]
    return make(cache_dir)


def _manifest_target(cache_dir: Path) -> Target:
    only_manifest = ("shards", "files", "teacher_perplexity", "teacher_entropy_nats")

    def read(data: bytes) -> None:
        content = parsed_json(data)
        (cache_dir / MANIFEST_NAME).write_bytes(seal(content) if isinstance(content, dict) else data)
        if isinstance(content, dict):
            (cache_dir / PLAN_NAME).write_bytes(seal({k: v for k, v in content.items() if k not in only_manifest}))
            with contextlib.suppress(TeachonceError):
                read_plan(cache_dir)
        cache = open_cache(cache_dir)
        assert_manifest_rules(cache.manifest)
        json.dumps(summarize(cache))
        render_summary(summarize(cache)).encode()

    return Target([_content(cache_dir / MANIFEST_NAME)], mutate_json, read)


def _commit_target(cache_dir: Path) -> Target:
    shards = open_cache(cache_dir).manifest.shards
    key = shards[0].key

    def read(data: bytes) -> None:
        content = parsed_json(data)
        (cache_dir / key.commit_path).write_bytes(seal(content) if isinstance(content, dict) else data)
        record = read_commit(cache_dir, key)
        assert record is not None
        assert record.key == key
        assert min(record.num_rows, record.num_tokens, record.num_targets, record.shard_bytes) >= 0

    seeds = [_content(cache_dir / shard.key.commit_path) for shard in shards]
    return Target(seeds, mutate_json, read)


def _arrow_target(cache_dir: Path) -> Target:
    cache = open_cache(cache_dir)
    records = {kind: cache.manifest.shards_of(kind, "train")[0] for kind in KINDS}
    path = cache_dir / "fuzzed.arrow"

    def read(data: bytes) -> None:
        kind, content = _kind_and_content(data)
        path.write_bytes(content)
        record = dataclasses.replace(records[kind], shard_bytes=len(content), sha256=sha256_of(content))
        shard = Shard(path, cache.identity, record)
        for index in range(shard.num_record_batches):
            batch = shard.read_batch(index)
            batch_stats(batch, kind)
            assert_row_rules(batch, kind, cache.identity.vocab_size)

    return Target(_shard_seeds([cache_dir / records[kind].path for kind in KINDS]), mutate_tail, read)


def _stream_target(cache_dir: Path) -> Target:
    manifest = json.loads(_content(cache_dir / MANIFEST_NAME))
    first = {kind: next(s for s in manifest["shards"] if s["path"].startswith(f"{kind}/train")) for kind in KINDS}
    good = {kind: (cache_dir / shard["path"]).read_bytes() for kind, shard in first.items()}

    def read(data: bytes) -> None:
        kind, content = _kind_and_content(data)
        path = cache_dir / first[kind]["path"]
        path.write_bytes(content)
        original = dict(first[kind])
        first[kind].update(shard_bytes=len(content), sha256=sha256_of(content))
        (cache_dir / MANIFEST_NAME).write_bytes(seal(manifest))
        first[kind].update(original)
        try:
            cache = open_cache(cache_dir)
            stream = RowStream(cache, kind, "train", batch_rows=2, seed=0)
            seen = [batch.rows for batch in itertools.islice(stream.batches(), -(-stream.num_rows // 2))]
        finally:
            path.write_bytes(good[kind])
        for rows in seen:
            assert_row_rules(rows, kind, cache.identity.vocab_size)
        row_ids = [row_id for rows in seen for row_id in rows.column("row_id").to_pylist()][: stream.num_rows]
        assert sorted(row_ids) == list(range(stream.num_rows)), row_ids

    return Target(_shard_seeds([cache_dir / first[kind]["path"] for kind in KINDS]), mutate_tail, read)


def _archive_target(cache_dir: Path) -> Target:

    work = cache_dir.parent
    packed, unpacked = work / "packed.tar.zst", work / "unpacked"
    pack(cache_dir, packed)
    archive = packed.read_bytes()
    tar = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj().decompress(archive)

    def read(data: bytes) -> None:
        content = _wrapped(data[1:]) if data[:1] and data[0] % 2 else data[1:]
        packed.write_bytes(content)
        before = {path.name for path in work.iterdir()}
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            unpack(packed, unpacked)
        except BaseException:
            assert {path.name for path in work.iterdir()} == before - {unpacked.name}, "something was left behind"
            raise
        assert verify_cache(unpacked).problems == (), "what was unpacked is not whole"

    return Target([bytes([0]) + archive, bytes([1]) + tar], mutate_tail, read)


def _wrapped(tar: bytes) -> bytes:
    """Wrap a tar in the frame that unpack expects, in uncompressed blocks and with correct checksums."""
    starts = range(0, max(len(tar), 1), _RAW_BLOCK_BYTES)
    blocks = [tar[start : start + _RAW_BLOCK_BYTES] for start in starts]
    stored = b"".join(
        (len(block) << 3 | (index == len(blocks) - 1)).to_bytes(3, "little") + block
        for index, block in enumerate(blocks)
    )
    checksum = (xxhash.xxh64(tar).intdigest() & 0xFFFFFFFF).to_bytes(4, "little")
    frame = _FRAME_HEADER + stored + checksum
    return frame + _TRAILER_HEADER + hashlib.sha256(frame).digest()


def seal(content: dict[str, Any]) -> bytes:
    """Return a record's bytes with the checksum of its content."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"record_sha256": sha256_of(canonical.encode())}).encode()


def _content(path: Path) -> bytes:
    content = json.loads(path.read_bytes())
    del content["record_sha256"]
    return json.dumps(content).encode()


def sha256_of(content: bytes) -> str:
    """Return the sha256 in hex."""
    return hashlib.sha256(content).hexdigest()


def _shard_seeds(paths: list[Path]) -> list[bytes]:
    """Return each shard as it is, and with uncompressed buffers, where a changed byte changes a value or an offset."""
    contents = [path.read_bytes() for path in paths]
    return [
        bytes([index]) + form(content) for form in (bytes, stored_as_it_is) for index, content in enumerate(contents)
    ]


def _kind_and_content(data: bytes) -> tuple[str, bytes]:
    return KINDS[data[0] % len(KINDS) if data else 0], data[1:]
