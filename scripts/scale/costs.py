"""Estimate what a cache of 10^12 tokens costs and which resource is the bottleneck, by arithmetic on stated rates.

No GPU was measured. Every number that the model uses is a field of `Assumptions`, with its source.

Legend: L layers of width D, V vocabulary, T targets per block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from scripts.scale.assumptions import Assumptions
from scripts.support.flops import forward_flops_per_token
from storage.reading.epoch_order import STRANDS

_GIVEN = "command line"
_HOUR_S = 3600.0
# A shard at a URL is sent, and read back before its commit record is put.
_PASSES_AT_URL = 2


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
    return [*_making(a), *_text(a), *_reading(a)]


def _making(a: Assumptions) -> list[Amount]:
    """Return what the teacher costs, and what it leaves on disks and networks."""
    seconds = teacher_seconds_per_token(a)
    num_shards, shard_bytes, cache_bytes = _sizes(a)
    return [
        Amount("teacher", teacher_flops_per_token(a) / 1e6, "MFLOP/token", "forward pass, head included"),
        Amount("teacher", 1 / seconds, "tokens/s per GPU", "products, and passes over logits"),
        Amount("teacher", a.num_tokens * seconds / _HOUR_S, "GPU-hours", "all tokens"),
        Amount("cache", cache_bytes / 1e12, "TB", "bytes_per_token"),
        Amount("shards", num_shards, f"of {shard_bytes / 1e6:.0f} MB", "tokens_per_shard"),
        Amount(
            "work lost with a killed process", a.tokens_per_shard * seconds / 60, "GPU-minutes",
            "at most one shard",
        ),
        Amount(
            "encoding and writing", a.num_tokens / a.encode_tokens_per_s / _HOUR_S, "core-hours",
            "behind the teacher",
        ),
        Amount(
            "made at a URL: bytes over the network", _PASSES_AT_URL * cache_bytes / 1e12, "TB",
            "each shard is sent and read back, behind the teacher",
        ),
        Amount(
            "resume on a shared file system", num_shards / 2 * a.commit_lookups * a.lookup_s, "s",
            "half of the commit records, nothing cached",
        ),
    ]  # fmt: skip


def _text(a: Assumptions) -> list[Amount]:
    """Return what happens to the text before the first shard."""
    tokenizing_hours = a.num_tokens / a.tokenize_tokens_per_s / _HOUR_S
    token_bytes = a.num_tokens * a.stored_token_bytes
    text_bytes = a.num_tokens * a.text_bytes_per_token
    return [
        Amount(
            "tokens beside the cache", token_bytes / 1e12, "TB",
            "work files, until it is finished; twice while they are joined",
        ),
        Amount("tokenizing", tokenizing_hours, "core-hours", "any number of processes; --only tokenize needs no GPU"),
        Amount(
            "tokenizing, the wait", tokenizing_hours / a.cores_per_box, "hours",
            "one box of cores_per_box; more boxes divide it",
        ),
        Amount(
            "joining the parts' tokens", token_bytes / a.disk_write_bytes_per_s / _HOUR_S, "hours",
            "one process, after the last part",
        ),
        Amount(
            "hashing the text", text_bytes / a.hash_bytes_per_s / _HOUR_S, "hours",
            "one core of each process, at every start on files; not for hub data",
        ),
    ]  # fmt: skip


def _reading(a: Assumptions) -> list[Amount]:
    """Return what a finished cache costs its readers."""
    num_shards, shard_bytes, cache_bytes = _sizes(a)
    verify_hours = a.num_tokens / a.verify_tokens_per_s / _HOUR_S
    fetch_hours = cache_bytes / a.network_bytes_per_s / _HOUR_S
    return [
        Amount("verify", verify_hours, "core-hours", "every byte and row, --jobs processes"),
        Amount("verify, the wait", verify_hours / a.cores_per_box, "hours", "one box, --jobs cores_per_box"),
        Amount(
            "verify at a URL", max(verify_hours / a.cores_per_box, fetch_hours), "hours",
            "one box; each shard is read once",
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
    ]  # fmt: skip


def _sizes(a: Assumptions) -> tuple[float, float, float]:
    """Return the number of shards, and the bytes of a shard and of the cache."""
    return a.num_tokens / a.tokens_per_shard, a.tokens_per_shard * a.bytes_per_token, a.num_tokens * a.bytes_per_token


def precompute_limits(a: Assumptions) -> list[Limit]:
    """Return the demand and supply of each resource for one GPU with the teacher, scarcest first."""
    tokens_per_s = 1 / teacher_seconds_per_token(a)
    disk, network = (rate / a.gpus_per_box for rate in (a.disk_write_bytes_per_s, a.network_bytes_per_s))
    return _scarcest_first(
        ("the GPU's arithmetic, of its peak", tokens_per_s * teacher_flops_per_token(a), a.gpu_flops_per_s, "FLOP/s"),
        ("the GPU's memory, by logits alone", tokens_per_s * _logit_bytes(a), a.gpu_memory_bytes_per_s, "B/s"),
        ("PCIe, by sparse targets", tokens_per_s * a.device_bytes_per_token, a.pcie_bytes_per_s, "B/s"),
        ("the thread that encodes and writes", tokens_per_s, a.encode_tokens_per_s, "tokens/s"),
        ("a GPU's share of the disk", tokens_per_s * a.bytes_per_token, disk, "B/s"),
        ("a GPU's share of the network, at a URL", _PASSES_AT_URL * tokens_per_s * a.bytes_per_token, network, "B/s"),
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
