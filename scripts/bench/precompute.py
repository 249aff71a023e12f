"""Measure the whole soft-target pass against the bare forward pass of the model on the same tokens.

Ours: forward pass, sparse targets, encoding, checks, compression, writing, hashing and fsync of a shard. The
reference is `model(input_ids).logits` of an unmodified model of transformers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pipeline.config import PrecomputeConfig, SoftTargetsConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.token_store import TokenWriter
from pipeline.engines.shard_writing import write_missing_shards
from pipeline.plan import ShardRange
from pipeline.producers.soft_targets import SoftTargetsProducer
from pipeline.teacher.loading import load_teacher
from pipeline.teacher.model import Teacher
from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.gpu.busy import busy_share
from scripts.support.caches import made_up_identity
from scripts.support.measure import interleaved_seconds, peak_extra_bytes
from scripts.support.teachers import save_random_teacher
from storage.records.identity import ShardKey
from storage.rows import soft_targets
from storage.writing.destinations import open_destination

_TIME_TARGETS = {("float32", "top-k 64"): 1.02, ("bfloat16", "top-k 64"): 1.08}
_SAMPLED_TIME_TARGET, _MEMORY_TARGET = 1.10, 0.35
_MEMORY_ROUNDS = 3
_SHARDS_WHILE_BUSY = 4
SETTINGS = {
    "top-k 64": SoftTargetsConfig(top_k=64, tail_weight=None),
    "sampled tail": SoftTargetsConfig(),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many tokens to read, and in which pieces."""

    block_size: int
    num_blocks: int
    batch_tokens: int
    document_tokens: int
    """Length of the documents that the packed variant packs into blocks."""


SIZES = {
    "full": Sizes(block_size=512, num_blocks=16, batch_tokens=2048, document_tokens=300),
    "gpu": Sizes(block_size=1024, num_blocks=128, batch_tokens=16_384, document_tokens=300),
    "tiny": Sizes(block_size=16, num_blocks=32, batch_tokens=64, document_tokens=9),
}


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare time per token and peak memory, in float32 and bfloat16. On a GPU, measure how long its kernels run."""
    sizes = SIZES[config.size]
    with tempfile.TemporaryDirectory() as directory:
        for dtype in config.dtypes:
            work = Path(directory) / dtype
            model_dir = work / "teacher"
            save_random_teacher(model_dir, config.device, dtype, **config.model)
            options = PrecomputeConfig(
                teacher=str(model_dir), data="stdlib", out=work / "out", dtype=dtype, device=config.device,
                block_size=sizes.block_size, batch_tokens=sizes.batch_tokens,
            )  # fmt: skip
            teacher = load_teacher(options)
            bare = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=teacher.dtype)
            bench = Bench(config, sizes, options, teacher, bare.to(teacher.device).eval(), work)
            yield from bench.times(dtype)
            yield from bench.memory(dtype)
            if config.device == "cuda":
                yield bench.busy(dtype)


class Bench:
    """The teacher as precompute loads it and the bare model, both in one dtype."""

    def __init__(
        self, config: BenchConfig, sizes: Sizes, options: PrecomputeConfig, teacher: Teacher, bare: Any, work: Path
    ) -> None:
        self._config, self._sizes, self._options = config, sizes, options
        self._teacher, self._bare, self._work = teacher, bare, work
        self._shard_numbers = itertools.count()

    def times(self, dtype: str) -> Iterator[Comparison]:
        """Compare the microseconds per token of our pass and of the bare model."""
        whole, packed = (self.blocks(n) for n in (self._sizes.block_size + 1, self._sizes.document_tokens))
        variants: dict[str, Callable[[], object]] = {
            name: self.writing_pass(whole, settings) for name, settings in SETTINGS.items()
        }
        variants["sampled tail, packed documents"] = self.writing_pass(packed, SETTINGS["sampled tail"])
        variants["bare"] = self._bare_pass(whole)
        seconds = interleaved_seconds(variants, self._config.rounds, self._config.device)
        num_tokens = self._sizes.num_blocks * self._sizes.block_size
        per_token = {name: [s / num_tokens * 1e6 for s in values] for name, values in seconds.items()}
        bare = per_token.pop("bare")
        for name, values in per_token.items():
            yield Comparison(
                what=f"time, {dtype}, {name}",
                ours="whole pass",
                reference="bare model",
                our_values=values,
                reference_values=bare,
                unit="µs/token",
                target=_TIME_TARGETS.get((dtype, name), None if "packed" in name else _SAMPLED_TIME_TARGET),
            )

    def memory(self, dtype: str) -> Iterator[Comparison]:
        """Compare the peak memory beyond the weights, in MB, of our pass and of top-k over full log-probabilities."""
        blocks = self.blocks(self._sizes.block_size + 1)
        actions = {name: self.writing_pass(blocks, settings) for name, settings in SETTINGS.items()}
        actions["naive"] = functools.partial(self._naive_pass, blocks)
        megabytes: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(min(self._config.rounds, _MEMORY_ROUNDS)):
            for name, action in actions.items():
                megabytes[name].append(peak_extra_bytes(action, self._config.device) / 1e6)
        for name in SETTINGS:
            yield Comparison(
                what=f"peak memory over weights, {dtype}, {name}",
                ours="whole pass",
                reference="naive",
                our_values=megabytes[name],
                reference_values=megabytes["naive"],
                unit="MB",
                target=_MEMORY_TARGET,
            )

    def busy(self, dtype: str) -> Comparison:
        """Compare the time in which a kernel runs on the GPU with the whole time, while shards are written."""
        write = self.writing_pass(self.blocks(self._sizes.block_size + 1), SETTINGS["sampled tail"], _SHARDS_WHILE_BUSY)
        shares = [busy_share(write) for _ in range(self._config.rounds)]
        return Comparison(
            what=f"share of time in which a kernel runs, {dtype}, sampled tail",
            ours="whole pass",
            reference="all of the time",
            our_values=shares,
            reference_values=[1.0] * len(shares),
            unit="of the time",
            more_is_better=True,
        )

    def blocks(self, document_tokens: int) -> Blocks:
        """Return blocks of random tokens in documents of `document_tokens` tokens."""
        directory = self._work / f"tokens-{document_tokens}"
        writer = TokenWriter(directory, np.uint16)
        rng = np.random.default_rng(0)
        remaining = self._sizes.num_blocks * (self._sizes.block_size + 1)
        while remaining > 0:
            length = min(document_tokens, remaining)
            writer.append(rng.integers(0, self._teacher.vocab_size, length))
            writer.end_document()
            remaining -= length
        return Blocks(writer.close(), self._sizes.block_size)

    def writing_pass(self, blocks: Blocks, settings: SoftTargetsConfig, num_shards: int = 1) -> Callable[[], object]:
        """Return an action that makes shards as precompute does, each of all `blocks`."""
        options = dataclasses.replace(self._options, soft_targets=settings)
        schema = soft_targets.schema(self._teacher.vocab_size, options.block_size)
        producer = SoftTargetsProducer(self._teacher, options, {"train": blocks}, schema)
        identity = made_up_identity(
            len(blocks), options.block_size, self._teacher.vocab_size,
            top_k=settings.top_k, tail_weight=settings.tail_weight,
        )  # fmt: skip

        def write() -> None:
            shards = [ShardRange(key=self._next_key(), first_row=0, end_row=len(blocks)) for _ in range(num_shards)]
            write_missing_shards(open_destination(options.out), identity, producer, shards, lambda *told: None)

        return write

    def _next_key(self) -> ShardKey:
        return ShardKey(kind="soft_targets", split="train", index=next(self._shard_numbers), num_shards=100_000)

    def _bare_pass(self, blocks: Blocks) -> Callable[[], object]:
        @torch.no_grad()
        def forward() -> None:
            for input_ids in self._batches(blocks):
                self._bare(input_ids).logits  # noqa: B018

        return forward

    @torch.no_grad()
    def _naive_pass(self, blocks: Blocks) -> None:
        input_ids = next(self._batches(blocks))
        torch.log_softmax(self._bare(input_ids).logits.float(), dim=-1).topk(min(64, self._teacher.vocab_size))

    def _batches(self, blocks: Blocks) -> Iterator[torch.Tensor]:
        rows = max(1, self._sizes.batch_tokens // self._sizes.block_size)
        for first in range(0, len(blocks), rows):
            yield self._teacher.to_device(blocks.input_ids(first, first + rows)[:, :-1])
