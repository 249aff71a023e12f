"""The settings of an import. Every field is a flag of teachonce-cache import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from storage.errors import ConfigError
from storage.remote.directory import require_local
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS

SourceFormat = Literal["topk-jsonl", "topk-parquet", "distillkit"]
Alignment = Literal["next", "same"]
# The lists of a few record batches of very long texts.
_LARGEST_BLOCK = 1 << 20


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Make a cache of targets that another tool wrote."""

    source: tyro.conf.Positional[Path]
    """A file, or a directory of files that are read in the order of their names."""
    format: SourceFormat
    """topk-jsonl: lines as vLLM or an OpenAI-compatible server answers; topk-parquet: Parquet or Arrow with lists of
    ids and logprobs; distillkit: a compressed set of DistillKit."""
    tokenizer: Path
    """Directory with tokenizer.json and tokenizer_config.json of the teacher."""
    out: Path
    """Directory of the new cache; the same command resumes an interrupted run."""
    teacher: str = "an unnamed teacher"
    """Name of the teacher, for people."""
    vocab_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Rows of the teacher's output, for models with more rows than the tokenizer has ids; None takes the ids."""
    block_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Targets in a block; longer texts are cut. None takes the longest text, so that none is cut."""
    validation_fraction: float = 0.05
    """Share of the texts to hold out, evenly spread over the source."""
    alignment: Alignment = "next"
    """What the lists at position t of Parquet are about: next, token t + 1, as a model's logits at t; same, token t, as
    vLLM's prompt_logprobs."""
    input_ids_column: str = "input_ids"
    """Column with the token ids of a text, in Parquet."""
    ids_column: str = "ids"
    """Column with a list of ids per position, in Parquet."""
    logprobs_column: str = "logprobs"
    """Column with a list of log-probabilities per position, in Parquet."""
    labels_column: str | None = None
    """Column with labels per token in Parquet, in which -100 marks tokens that the teacher should not teach."""
    compression_config: Path | None = None
    """File in which DistillKit says how it compressed; None takes compression_config.yaml in the source's directory."""
    mass_tolerance: float = 0.01
    """How far the probabilities of a position may exceed 1 by rounding; up to that they are scaled to 1."""
    mantissa_bits: int = FLOAT16_MANTISSA_BITS
    """Mantissa bits kept of each float16 logprob; fewer bits compress better, 10 keeps all."""
    shard_tokens: int = 2_097_152
    """Tokens per shard."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        require_local(self.source, self.tokenizer, self.out)
        _require(
            self.block_size is None or 2 <= self.block_size <= _LARGEST_BLOCK,
            f"--block-size is {self.block_size}, expected 2 to {_LARGEST_BLOCK:,}",
        )
        _require(
            0 <= self.validation_fraction < 1,
            f"--validation-fraction is {self.validation_fraction}, expected at least 0 and below 1",
        )
        _require(
            0 <= self.mass_tolerance < 1, f"--mass-tolerance is {self.mass_tolerance}, expected at least 0 and below 1"
        )
        _require(
            1 <= self.mantissa_bits <= FLOAT16_MANTISSA_BITS,
            f"--mantissa-bits is {self.mantissa_bits}, expected 1 to {FLOAT16_MANTISSA_BITS}",
        )
        _require(self.shard_tokens >= 1, f"--shard-tokens is {self.shard_tokens}, expected at least 1")
