"""Train a small GPT-2 teacher and its byte-level BPE, for machines without a checkpoint.

    python -m scripts.demo.make_teacher --data stdlib --out demo/teacher

The model reads the training split only. It never sees the documents that teachonce-precompute holds out with the same
seed and validation fraction. The BPE counts pairs over all documents, the held-out ones too.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import tyro
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from pipeline.config import PrecomputeConfig
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.tokenization import tokenize_corpus
from pipeline.sources.corpus import open_corpus
from scripts.support.teachers import EOS, LABELS_ONLY, new_gpt2, train_byte_level_bpe
from storage.command import run_command
from storage.disk.directories import publishing_path
from storage.disk.files import refusals
from storage.draws import hash_permutation
from storage.errors import ConfigError
from storage.progress import Progress
from storage.remote.directory import require_local
from storage.rows.segments import position_ids, valid_targets
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.model_facts import num_parameters
from student.losses.fused_head import fused_head_loss
from student.losses.targets import SparseTargets
from student.model.architecture import hidden_states, output_head

MIN_VOCAB_SIZE = 257


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
    epochs: float = 3.0
    """Passes over the training split."""
    batch_blocks: int = 16
    learning_rate: float = 2e-3
    """Peak of the learning rate, which then falls to almost zero along a one-cycle schedule."""
    validation_fraction: float = 0.05
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


def main() -> None:
    """Run the command."""
    run_command(make_teacher)


def make_teacher() -> int:
    """Train and save the teacher and its tokenizer. Leave a finished teacher as it is.

    Raises ConfigError when --out is a file or holds something other than a teacher.
    """
    config = tyro.cli(TeacherConfig, description=__doc__)
    transformers.logging.disable_progress_bar()
    if (config.out / "config.json").is_file():
        print(f"{config.out}: a teacher is there already", file=sys.stderr)
        return 0
    if config.out.exists() and not (config.out.is_dir() and not any(config.out.iterdir())):
        raise ConfigError(f"--out {config.out}: is there already and is no teacher; name a new or an empty directory")
    reading = PrecomputeConfig(
        teacher=str(config.out),
        data=config.data,
        out=config.out,
        block_size=config.block_size,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
    )
    corpus = open_corpus(reading)
    texts = (piece for document in corpus.documents() for piece in document.pieces)
    trained = train_byte_level_bpe(texts, config.vocab_size)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=EOS, bos_token=EOS)
    with tempfile.TemporaryDirectory() as work_dir:
        tokenized = tokenize_corpus(
            corpus,
            tokenizer,
            reading,
            vocab_size=len(tokenizer),
            context_length=config.context,
            work_dir=Path(work_dir) / "work",
        )
        model = train_model(tokenized.blocks["train"], tokenizer, config)
    with publishing_path(config.out) as staged, refusals(config.out):
        tokenizer.save_pretrained(staged)
        model.save_pretrained(staged)
    return 0


def train_model(blocks: Blocks, tokenizer: PreTrainedTokenizerFast, config: TeacherConfig) -> Any:
    """Train on the next tokens of shuffled blocks. Documents in a block cannot attend to each other."""
    use_fast_matmul()
    model = new_gpt2(
        vocab_size=len(tokenizer), layers=config.layers, width=config.width, heads=config.heads,
        context=config.context, eos_token_id=tokenizer.eos_token_id, seed=config.seed, device="cpu",
    )  # fmt: skip
    steps = max(1, int(config.epochs * len(blocks)) // config.batch_blocks)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    print(f"teacher: {num_parameters(model):,} parameters, {len(blocks):,} blocks", file=sys.stderr)
    with Progress(steps, "train teacher", "steps") as bar:
        for step in range(steps):
            optimizer.zero_grad()
            loss = _loss(model, blocks, _rows_of(step, len(blocks), config))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update(1, loss=f"{float(loss.detach()):.3f}")
    return model.eval()


def _rows_of(step: int, num_blocks: int, config: TeacherConfig) -> list[int]:
    first = step * config.batch_blocks
    return [
        int(_epoch_order(num_blocks, config.seed, i // num_blocks)[i % num_blocks])
        for i in range(first, first + config.batch_blocks)
    ]


@functools.lru_cache(maxsize=2)
def _epoch_order(num_blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return hash_permutation(num_blocks, seed, epoch)


def _loss(model: Any, blocks: Blocks, rows: list[int]) -> torch.Tensor:
    input_ids = np.concatenate([blocks.input_ids(row, row + 1) for row in rows]).astype(np.int64)
    lengths = [blocks.segment_lengths(row) for row in rows]
    is_valid = np.stack([valid_targets(segment_lengths) for segment_lengths in lengths])
    positions = np.stack([position_ids(segment_lengths)[:-1] for segment_lengths in lengths])
    hidden = hidden_states(model, torch.from_numpy(input_ids[:, :-1].copy()), torch.from_numpy(positions))
    labels = torch.from_numpy(input_ids[:, 1:][is_valid])
    hidden_PD = hidden[torch.from_numpy(is_valid)]
    total, _, _ = fused_head_loss(hidden_PD, output_head(model), SparseTargets.labels_only(labels), LABELS_ONLY)
    return total / len(labels)


if __name__ == "__main__":
    main()
