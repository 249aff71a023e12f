"""Settings of the student's commands. Every field is a flag of teachonce-student."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from storage.errors import ConfigError
from storage.reading.remote_cache import DEFAULT_LOCAL_BYTES, LocalCopy, default_local_copy
from storage.remote.directory import require_local

Loss = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"]
Dtype = Literal["auto", "float32", "bfloat16"]
Parallelism = Literal["ddp", "fsdp"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Weights of the parts of the loss; 0 leaves a part out."""

    soft_targets: float | None = None
    """Teacher's next-token distributions; by default 1.0 when the cache holds them."""
    samples: float | None = None
    """Next-token loss on the teacher's texts; by default 0.5 when the cache holds them."""
    beams: float | None = None
    """Loss of choosing the teacher's best candidate; by default 0.05 when the cache holds candidates."""
    labels: float | None = None
    """Next-token loss on the real text; by default 0.1 when the cache holds blocks of it."""

    def __post_init__(self) -> None:
        weights = (self.soft_targets, self.samples, self.beams, self.labels)
        _require(all(w is None or w >= 0 for w in weights), f"--mix weights are {weights}, expected none below 0")
        _require(any(w is None or w > 0 for w in weights), "--mix weights are all 0; nothing would be learnt")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train adapters beside the weights of a checkpoint, which stay as they are; the student has both merged."""

    rank: int | None = None
    """Rank of the adapters of all linear layers (extra: peft); None trains all weights. Needs a checkpoint as --preset.
    """
    alpha: float = 32.0
    """An adapter counts alpha / rank times."""
    train_embeddings: bool = False
    """Train the embeddings and the output head too, in full."""

    def __post_init__(self) -> None:
        _require(self.rank is None or self.rank >= 1, f"--lora.rank is {self.rank}, expected at least 1, or None")
        _require(0 < self.alpha < math.inf, f"--lora.alpha is {self.alpha}, expected a number above 0")
        _require(
            self.rank is not None or (self.alpha == LoraConfig.alpha and not self.train_embeddings),
            "--lora.alpha and --lora.train-embeddings are read only with --lora.rank; give it, or leave them out",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a student from a cache alone; a rerun with the same settings resumes."""

    cache: Positional[str | Path]
    """Directory of a cache, or its URL (s3://…); shards at a URL are copied when they are needed."""
    out: Path
    """Directory of the student, for checkpoints, metrics.jsonl and at the end the model."""
    preset: str = "small"
    """mini, small, distil, a config .json, or a checkpoint directory to start from. Its vocabulary needs a row for each
    token of the cache; rows that stand for no token may be fewer or more than the teacher's."""
    max_steps: int = 1000
    """Optimiser steps."""
    batch_blocks: int | Literal["auto"] = 16
    """Blocks of soft targets per step, over all processes; auto takes as many as fit into 16,384 tokens."""
    batch_samples: int = 16
    """Sampled texts per step, over all processes."""
    batch_beams: int = 4
    """Prompts with their candidates per step, over all processes."""
    micro_batches: int = 1
    """Parts that a step's batch is cut into: gradients accumulate, and less memory is used. Results stay the same but
    for rounding, with --dropout only for the same number of parts. When memory runs out, training continues with twice
    as many (not with fsdp)."""
    learning_rate: float = 1e-3
    """Peak learning rate; the rate falls along a cosine to a tenth of it."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None takes a twentieth of max_steps."""
    weight_decay: float = 0.1
    """AdamW weight decay of matrices."""
    beta2: float = 0.95
    """AdamW decay of squared gradients."""
    max_gradient_norm: float = 1.0
    """Norm to which gradients are clipped."""
    dropout: float | None = 0.0
    """Share of units that every dropout of the student drops, whatever its config says; None takes what that says. Runs
    that an earlier version began go on with None."""
    seed: int = 0
    """Seed of initial weights and of the order of rows."""
    mix: MixConfig = field(default_factory=MixConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    loss: Loss = "forward_kl"
    """Divergence from the teacher's soft targets."""
    temperature: float = 1.0
    """Temperature of teacher and student in the soft-target loss: 1, or one that the cache was made for."""
    selection_temperature: float | None = 0.1
    """Temperature of the teacher's choice among candidates; None takes its best candidate alone."""
    evaluate_every: int = 200
    """Steps between evaluations on the validation split."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    parallelism: Parallelism = "ddp"
    """What each of several processes (torchrun) holds: all of the student (ddp), or a part of it (fsdp)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them; takes less memory, a third more time."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU when there is one, and another for each process under torchrun."""
    dtype: Dtype = "auto"
    """Arithmetic of the forward and backward pass; auto is bfloat16 autocast on a GPU, float32 elsewhere."""
    allow_incomplete: bool = False
    """Train on the committed shards of a cache that precompute is still writing."""
    local_cache_dir: Path | None = None
    """Directory for shards of a cache at a URL; None takes teachonce/ in the user's cache directory."""
    local_cache_bytes: int = DEFAULT_LOCAL_BYTES
    """Most bytes of this cache's shards to keep there; the least recently used are removed first."""
    tensorboard: bool = False
    """Also write the figures of metrics.jsonl for TensorBoard, in the student's tensorboard/ (extra: tensorboard)."""
    quiet: bool = False
    """Show no progress."""

    @property
    def local_copy(self) -> LocalCopy:
        """Directory and size limit of the local copy of a remote cache."""
        directory = self.local_cache_dir or default_local_copy().directory
        return LocalCopy(directory=directory, max_bytes=self.local_cache_bytes)

    def __post_init__(self) -> None:
        require_local(self.out, self.local_copy.directory)
        _require(self.local_cache_bytes >= 1, f"--local-cache-bytes is {self.local_cache_bytes}, expected at least 1")
        _require(self.max_steps >= 1, f"--max-steps is {self.max_steps}, expected at least 1")
        batch_blocks = 1 if self.batch_blocks == "auto" else self.batch_blocks
        for name, size in (
            ("batch-blocks", batch_blocks),
            ("batch-samples", self.batch_samples),
            ("batch-beams", self.batch_beams),
            ("micro-batches", self.micro_batches),
            ("evaluate-every", self.evaluate_every),
            ("checkpoint-every", self.checkpoint_every),
        ):
            _require(size >= 1, f"--{name} is {size}, expected at least 1")
        _require(self.max_gradient_norm > 0, f"--max-gradient-norm is {self.max_gradient_norm}, expected more than 0")
        _require(self.weight_decay >= 0, f"--weight-decay is {self.weight_decay}, expected 0 or more")
        _require(
            self.dropout is None or 0 <= self.dropout < 1,
            f"--dropout is {self.dropout}, expected at least 0 and below 1, or None",
        )
        _require(self.learning_rate > 0, f"--learning-rate is {self.learning_rate}, expected more than 0")
        _require(self.warmup_steps is None or self.warmup_steps >= 0, "--warmup-steps must be 0 or more")
        _require(self.temperature > 0, f"--temperature is {self.temperature}, expected more than 0")
        _require(
            self.selection_temperature is None or self.selection_temperature > 0,
            "--selection-temperature must be more than 0, or None",
        )
        _require(
            self.lora.rank is None or self.parallelism != "fsdp",
            f"--lora.rank {self.lora.rank} with --parallelism fsdp: adapters are trained with ddp alone",
        )
        _require(0 <= self.beta2 < 1, f"--beta2 is {self.beta2}, expected at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a student against the cached teacher on the validation split."""

    student: Positional[Path]
    """Directory of the student."""
    cache: str | Path
    """Directory of a finished cache, or its URL."""
    batch_blocks: int = 16
    """Blocks per forward pass."""
    num_prompts: int = 32
    """Held-out prompts that the student continues, to compare with the teacher's texts; 0 leaves texts out."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU when there is one."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        _require(self.batch_blocks >= 1, f"--batch-blocks is {self.batch_blocks}, expected at least 1")
        _require(self.num_prompts >= 0, f"--num-prompts is {self.num_prompts}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to sample text from a student."""

    max_new_tokens: int = 64
    """Longest continuation, in tokens."""
    temperature: float = 0.8
    """Sampling temperature; 0 takes the most probable token."""
    top_p: float = 0.95
    """Probability mass of the nucleus to sample from."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        # With a lower temperature, logits / temperature can leave the range of float32.
        _require(
            self.temperature == 0 or 1e-4 <= self.temperature < math.inf,
            f"--temperature is {self.temperature}, expected 0 or at least 0.0001",
        )
        _require(0 < self.top_p <= 1, f"--top-p is {self.top_p}, expected above 0 and at most 1")
        _require(0 <= self.seed < 1 << 63, f"--seed is {self.seed}, expected 0 or more and below 2^63")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a page about one or more students: what they learnt from the teacher, and what they lost."""

    students: Positional[tuple[Path, ...]]
    """Directories of the students, the most important first; one trained on plain text alone is the baseline."""
    cache: str | Path
    """Directory of a finished cache, or its URL."""
    out: Path = Path("report.html")
    """File of the page, which loads no other file and runs no script."""
    num_prompts: int = 32
    """Held-out prompts that each student continues, to measure how varied its texts are; 0 skips this."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU when there is one."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        _require(len(self.students) > 0, "no student was named; give at least one directory")
        _require(
            len({student.resolve() for student in self.students}) == len(self.students),
            "the same student is named twice",
        )
        _require(self.num_prompts >= 0, f"--num-prompts is {self.num_prompts}, expected 0 or more")
