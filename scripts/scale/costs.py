"""Estimate what a cache of 10^12 tokens costs and which resource is the bottleneck, by arithmetic on stated rates.

No GPU was measured. Every number that the model uses is a field of `Assumptions`, with its source.

Legend: L layers of width D, V vocabulary, T targets per block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from scripts.scale.made_up import BLOCK_SIZE, BYTES_PER_TOKEN, TOKENS_PER_SHARD, VOCAB_SIZE
from scripts.support.flops import forward_flops_per_token
from storage.errors import ConfigError
from storage.reading.epoch_order import SHARDS_PER_GROUP, STRANDS
from storage.remote.directory import PIECE_BYTES

_BENCHMARKS = "measured, docs/benchmarks.md"
_TARGETS = "measured, docs/targets.md"
_HERE = "measured once for this page"
_CODE = "read from our code"
_SHAPE = "the model"
_VENDOR = "vendor's figure"
_ASSUMED = "assumed"
_GIVEN = "command line"

_HOUR_S = 3600.0


def _number(default: float, unit: str, source: str) -> Any:
    return field(default=default, metadata={"unit": unit, "source": source})


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Numbers that the cost model uses. Rates per second are for one unit: a GPU, a core, a box."""

    num_tokens: float = _number(1e12, "tokens", "the question")
    """Tokens of the text."""
    tokens_per_shard: float = _number(TOKENS_PER_SHARD, "tokens", _ASSUMED)
    """--shard-tokens, rounded to whole record batches. The default of precompute is 2.1 million."""
    block_size: int = _number(BLOCK_SIZE, "targets", _ASSUMED)
    """T, targets per block."""
    vocab_size: int = _number(VOCAB_SIZE, "ids", _SHAPE)
    """V, GPT-2's vocabulary."""
    teacher_layers: int = _number(48, "layers", _SHAPE)
    """Layers of GPT-2 XL."""
    teacher_width: int = _number(1600, "features", _SHAPE)
    """Width of GPT-2 XL."""
    student_layers: int = _number(6, "layers", _SHAPE)
    """Layers of the student, --preset distil."""
    student_width: int = _number(768, "features", _SHAPE)
    """Width of the student."""

    gpu_flops_per_s: float = _number(989e12, "FLOP/s", _VENDOR)
    """Peak of dense bfloat16 products of an H200 SXM."""
    gpu_memory_bytes_per_s: float = _number(4.8e12, "B/s", _VENDOR)
    """Memory bandwidth of an H200 SXM."""
    pcie_bytes_per_s: float = _number(64e9, "B/s", _VENDOR)
    """PCIe 5.0 x16, one direction."""
    store_gets_per_s: float = _number(5500, "GET/s", _VENDOR)
    """GET requests that an object store answers under one prefix (Amazon S3)."""

    flops_utilisation: float = _number(0.4, "of the peak", _ASSUMED)
    """Share of the peak that the matrix products of teacher and student reach."""
    logit_passes: float = _number(12, "passes", _ASSUMED)
    """How often sparse targets read or write the float32 logits of a position on the GPU."""
    gpus_per_box: int = _number(8, "GPUs", _ASSUMED)
    """GPUs in a box."""
    disk_write_bytes_per_s: float = _number(2e9, "B/s", _ASSUMED)
    """Rate at which a box writes and flushes to its disk or shared file system."""
    network_bytes_per_s: float = _number(3e9, "B/s", _ASSUMED)
    """Rate at which a box reads from an object store."""
    lookup_s: float = _number(5e-4, "s", _ASSUMED)
    """Time of a look-up in a shared file system when another machine answers it."""

    bytes_per_token: float = _number(BYTES_PER_TOKEN, "B/token", _TARGETS)
    """Bytes of a whole row at V = 50,257 and 3.3 nats of entropy. A more certain teacher needs fewer."""
    encode_tokens_per_s: float = _number(1.29e6, "tokens/s", _BENCHMARKS)
    """Benchmark write: encode, check, compress, hash, flush and rename on one core."""
    verify_tokens_per_s: float = _number(16 * 1024 / 5.21e-3, "tokens/s", _BENCHMARKS)
    """Benchmark scale: verify 16 blocks of 1,024 targets in 5.21 ms on one core."""
    stream_tokens_per_s: float = _number(2.88e6, "tokens/s", _BENCHMARKS)
    """Benchmark stream: a first epoch, shuffled, hashed and checked, as tensors."""
    tokenize_tokens_per_s: float = _number(0.97e6, "tokens/s", _HERE)
    """GPT-2's fast tokenizer on English documents of 4,000 characters, on one of two busy cores."""
    hash_bytes_per_s: float = _number(1.9e9, "B/s", _HERE)
    """sha256 on one core."""
    text_bytes_per_token: float = _number(4.3, "B/token", _ASSUMED)
    """UTF-8 bytes of the text per token."""

    device_bytes_per_token: float = _number(33 * (4 + 4 + 1) + 33 * (4 + 1) + 3 * 4, "B/token", _CODE)
    """pipeline/producers/sparsify.py: PaddedTargets at the default tail_weight 1/32, with 33 head and 33 tail slots."""
    stored_token_bytes: float = _number(2, "B/token", _CODE)
    """pipeline/corpus/token_store.py: uint16 below 65,536 ids."""
    piece_bytes: int = _number(PIECE_BYTES, "B", _CODE)
    """storage/remote/directory.py: bytes that one request fetches."""
    group_shards: int = _number(SHARDS_PER_GROUP, "shards", _CODE)
    """storage/reading/epoch_order.py: shards that a stream hashes before its first batch."""
    commit_lookups: float = _number(7, "look-ups", _CODE)
    """storage/records/commits.py, read_held_commit: two checks for links, existence, size and bytes of the record, and
    its shard, staged and in place."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"--assume.{name.replace('_', '-')} is {value}, expected more than 0")


@dataclass(frozen=True)
class Amount:
    """One row of a table: a quantity, its value with unit, and how it was obtained."""

    what: str
    value: float
    unit: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The demand for a resource and how much of it is available."""

    resource: str
    asked: float
    available: float
    unit: str

    @property
    def share(self) -> float:
        """Demand divided by what is available. Above 1 the resource is a bottleneck."""
        return self.asked / self.available


def assumed(assumptions: Assumptions) -> list[Amount]:
    """Return every assumption with its source. The source of a changed one is the command line."""
    return [
        Amount(
            what=number.name,
            value=getattr(assumptions, number.name),
            unit=number.metadata["unit"],
            how=number.metadata["source"] if getattr(assumptions, number.name) == number.default else _GIVEN,
        )
        for number in fields(assumptions)
    ]


def teacher_flops_per_token(a: Assumptions) -> float:
    """Return the FLOPs per token of the teacher's forward pass."""
    return forward_flops_per_token(a.teacher_layers, a.teacher_width, a.vocab_size, a.block_size)


def student_flops_per_token(a: Assumptions) -> float:
    """Return the FLOPs per token of a student's training step: three times those of its forward pass."""
    return 3 * forward_flops_per_token(a.student_layers, a.student_width, a.vocab_size, a.block_size)


def teacher_seconds_per_token(a: Assumptions) -> float:
    """Return the teacher's seconds per token on a GPU.

    The time of the products at the assumed utilisation, plus the time of the passes over float32 logits, which are
    bound by memory bandwidth.
    """
    products = teacher_flops_per_token(a) / (a.gpu_flops_per_s * a.flops_utilisation)
    return products + _logit_bytes(a) / a.gpu_memory_bytes_per_s


def student_tokens_per_s(a: Assumptions) -> float:
    """Return the tokens per second of a student's training on one GPU at the assumed utilisation."""
    return a.gpu_flops_per_s * a.flops_utilisation / student_flops_per_token(a)


def _logit_bytes(a: Assumptions) -> float:
    return a.logit_passes * 4 * a.vocab_size


def costs(a: Assumptions) -> list[Amount]:
    """Return the costs of the whole cache."""
    seconds = teacher_seconds_per_token(a)
    num_shards = a.num_tokens / a.tokens_per_shard
    shard_bytes = a.tokens_per_shard * a.bytes_per_token
    return [
        Amount("teacher", teacher_flops_per_token(a) / 1e6, "MFLOP/token", "forward pass, head included"),
        Amount("teacher", 1 / seconds, "tokens/s per GPU", "products, and passes over logits"),
        Amount("teacher", a.num_tokens * seconds / _HOUR_S, "GPU-hours", "all tokens"),
        Amount("cache", a.num_tokens * a.bytes_per_token / 1e12, "TB", "bytes_per_token"),
        Amount("shards", num_shards, f"of {shard_bytes / 1e6:.0f} MB", "tokens_per_shard"),
        Amount(
            "work lost with a killed process", a.tokens_per_shard * seconds / 60, "GPU-minutes",
            "at most one shard",
        ),
        Amount(
            "tokens beside the cache", a.num_tokens * a.stored_token_bytes / 1e12, "TB",
            "work files, until it is finished",
        ),
        Amount(
            "tokenizing", a.num_tokens / a.tokenize_tokens_per_s / _HOUR_S, "core-hours",
            "one process, before the first shard",
        ),
        Amount(
            "hashing the text", a.num_tokens * a.text_bytes_per_token / a.hash_bytes_per_s / _HOUR_S, "hours",
            "one core, at every start on files; not for hub data",
        ),
        Amount(
            "encoding and writing", a.num_tokens / a.encode_tokens_per_s / _HOUR_S, "core-hours",
            "behind the teacher",
        ),
        Amount(
            "verify", a.num_tokens / a.verify_tokens_per_s / _HOUR_S, "core-hours",
            "every byte and row; one process",
        ),
        Amount(
            "reading an epoch", num_shards * math.ceil(shard_bytes / a.piece_bytes), "GET requests",
            "from an object store, piece_bytes each",
        ),
        Amount(
            "first batch", shard_bytes / a.hash_bytes_per_s, "s",
            "beyond opening: a group of shards is hashed, each on a core",
        ),
        Amount(
            "first batch from a URL", a.group_shards * shard_bytes / a.network_bytes_per_s, "s",
            "the group is fetched and hashed on the way",
        ),
        Amount(
            "resume on a shared file system", num_shards / 2 * a.commit_lookups * a.lookup_s, "s",
            "half of the commit records, nothing cached",
        ),
    ]  # fmt: skip


def precompute_limits(a: Assumptions) -> list[Limit]:
    """Return the demand and supply of each resource for one GPU with the teacher, scarcest first."""
    tokens_per_s = 1 / teacher_seconds_per_token(a)
    disk = a.disk_write_bytes_per_s / a.gpus_per_box
    return _scarcest_first(
        ("the GPU's arithmetic, of its peak", tokens_per_s * teacher_flops_per_token(a), a.gpu_flops_per_s, "FLOP/s"),
        ("the GPU's memory, by logits alone", tokens_per_s * _logit_bytes(a), a.gpu_memory_bytes_per_s, "B/s"),
        ("PCIe, by sparse targets", tokens_per_s * a.device_bytes_per_token, a.pcie_bytes_per_s, "B/s"),
        ("the thread that encodes and writes", tokens_per_s, a.encode_tokens_per_s, "tokens/s"),
        ("a GPU's share of the disk", tokens_per_s * a.bytes_per_token, disk, "B/s"),
    )


def training_limits(a: Assumptions) -> list[Limit]:
    """Return the demand and supply of each resource for a box that trains a student on all GPUs, scarcest first.

    Each GPU has one rank. A rank decodes its share of the record batches and hashes every shard. From a URL, the model
    counts a fetch of every shard by every rank. This is an upper bound: processes of one machine share fetched shards.
    """
    tokens_per_s = a.gpus_per_box * student_tokens_per_s(a)
    decoded_per_s = tokens_per_s / min(a.gpus_per_box, STRANDS)
    fetched = a.gpus_per_box * tokens_per_s * a.bytes_per_token
    return _scarcest_first(
        (
            "a GPU's arithmetic, of its peak",
            student_tokens_per_s(a) * student_flops_per_token(a),
            a.gpu_flops_per_s,
            "FLOP/s",
        ),
        ("the stream of a rank", decoded_per_s, a.stream_tokens_per_s, "tokens/s"),
        ("the proof of shards in a rank", tokens_per_s * a.bytes_per_token, a.hash_bytes_per_s, "B/s"),
        ("the network, from a URL", fetched, a.network_bytes_per_s, "B/s"),
        ("requests to one prefix, from a URL", fetched / a.piece_bytes, a.store_gets_per_s, "GET/s"),
    )


def _scarcest_first(*limits: tuple[str, float, float, str]) -> list[Limit]:
    found = [Limit(resource=name, asked=asked, available=has, unit=unit) for name, asked, has, unit in limits]
    return sorted(found, key=lambda limit: -limit.share)
