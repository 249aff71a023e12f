"""The numbers that the cost model uses, with their sources. No GPU was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scripts.scale.made_up import BLOCK_SIZE, BYTES_PER_TOKEN, TOKENS_PER_SHARD, VOCAB_SIZE
from storage.errors import ConfigError
from storage.reading.epoch_order import SHARDS_PER_GROUP
from storage.remote.directory import PIECE_BYTES

_BENCHMARKS = "measured, docs/benchmarks.md"
_TARGETS = "measured, docs/targets.md"
_HERE = "measured once for this page"
_CODE = "read from our code"
_SHAPE = "the model"
_VENDOR = "vendor's figure"
_ASSUMED = "assumed"


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
    cores_per_box: int = _number(64, "cores", _ASSUMED)
    """Cores in a box, with or without GPUs."""
    disk_write_bytes_per_s: float = _number(2e9, "B/s", _ASSUMED)
    """Rate at which a box writes and flushes to its disk or shared file system."""
    network_bytes_per_s: float = _number(3e9, "B/s", _ASSUMED)
    """Rate at which a box reads from an object store, or writes to it."""
    lookup_s: float = _number(5e-4, "s", _ASSUMED)
    """Time of a look-up in a shared file system when another machine answers it."""

    bytes_per_token: float = _number(BYTES_PER_TOKEN, "B/token", _TARGETS)
    """Bytes of a whole row at V = 50,257 and 3.3 nats of entropy. A more certain teacher needs fewer."""
    encode_tokens_per_s: float = _number(1.29e6, "tokens/s", _BENCHMARKS)
    """Benchmark write: encode, check, compress, hash, flush and rename on one core."""
    verify_tokens_per_s: float = _number(16 * 1024 / 5.21e-3, "tokens/s", _BENCHMARKS)
    """Benchmark scale: verify 16 blocks of 1,024 targets in 5.21 ms on one core."""
    stream_tokens_per_s: float = _number(4.08e6, "tokens/s", _BENCHMARKS)
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
