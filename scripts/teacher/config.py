"""Settings of a teacher that is trained on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.errors import ConfigError
from storage.remote.directory import require_local

MIN_VOCAB_SIZE = 257
Dtype = Literal["float32", "bfloat16"]
_OF_A_STEP = (
    "vocab_size", "layers", "width", "heads", "context", "block_size", "batch_blocks", "learning_rate", "dtype",
    "validation_fraction", "seed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Settings of a teacher with GPT-2's architecture that is trained on plain text."""

    out: Path
    """Directory to write the teacher to."""
    data: str = "stdlib"
    """Text to train on, given as for teachonce-precompute --data."""
    vocab_size: int = 4096
    """Entries of the byte-level BPE, which is trained too."""
    layers: int = 4
    width: int = 256
    heads: int = 8
    context: int = 256
    block_size: int = 128
    """Targets per block."""
    epochs: float = 2.0
    """Passes over the training split."""
    batch_blocks: int = 16
    learning_rate: float = 2e-3
    """Peak of the learning rate. It rises over 50 steps and falls linearly to 0 over the last 30 % of the steps."""
    validation_fraction: float = 0.05
    dtype: Dtype = "float32"
    """Number format of the matrix products in training. bfloat16 takes half the time on a processor that has it, and is
    slower on others."""
    half_precision: bool = False
    """Save the weights as float16: half the bytes."""
    unseen_data: str | None = None
    """Text that the teacher is never trained on, given as --data. The card states the perplexity on it."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_local(self.out)
        for name in ("layers", "width", "heads", "context", "epochs", "batch_blocks", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected more than 0")
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise ConfigError(
                f"--vocab-size is {self.vocab_size}, expected {MIN_VOCAB_SIZE} (all bytes and the end) or more"
            )
        if self.width % self.heads:
            raise ConfigError(f"--width is {self.width}, expected a multiple of --heads ({self.heads})")
        if self.block_size > self.context:
            raise ConfigError(f"--block-size is {self.block_size}, expected at most --context ({self.context})")

    def settings_of_a_step(self) -> dict[str, Any]:
        """Return what every step depends on beside the data. --epochs counts only when the rate begins to fall."""
        return {name: getattr(self, name) for name in _OF_A_STEP}
