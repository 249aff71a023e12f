"""Measure how the memory of the teacher's pass and of a student's step grows with the length of a row.

One long row is compared with as many short ones as have its number of tokens. So memory that grows in proportion to a
row's length is the same on both sides, and that of a mask of T × T is 8 times as much.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from pipeline.config import PrecomputeConfig
from pipeline.teacher.loading import load_teacher
from pipeline.teacher.model import Teacher
from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.precompute import SETTINGS, Bench, Sizes
from scripts.support.caches import RECORD_BATCH_ROWS, write_soft_targets_cache
from scripts.support.measure import Action, peak_extra_bytes
from scripts.support.teachers import save_byte_tokenizer
from student.config import TrainConfig
from student.model.device import choose_device
from student.training.learner import make_learner

Settings = dict[str, Any]

_FLAT = 1.2
_TIMES = 8
# One step reads a long row of a single document, the next one of two: the peak is that of both.
_STEPS = 2
_MOST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Size:
    """Tokens of a long row, and the models that read it. documents: tokens of those that are packed into rows."""

    long_tokens: int
    width: int
    layers: int
    vocab_size: int
    document_tokens: int

    @property
    def models(self) -> dict[str, Settings]:
        """Settings of a GPT-2 and of a Llama with two heads for each of its keys and values."""
        shared = {"vocab_size": self.vocab_size, "bos_token_id": None, "eos_token_id": None}
        heads = max(2, self.width // 64)
        return {
            "GPT-2": {
                "model_type": "gpt2", "n_positions": self.long_tokens, "n_embd": self.width, "n_layer": self.layers,
                "n_head": heads,
            } | shared,
            "Llama": {
                "model_type": "llama", "max_position_embeddings": self.long_tokens, "hidden_size": self.width,
                "intermediate_size": 3 * self.width, "num_hidden_layers": self.layers, "num_attention_heads": heads,
                "num_key_value_heads": heads // 2,
            } | shared,
        }  # fmt: skip


_SIZES = {
    "full": Size(long_tokens=8192, width=128, layers=2, vocab_size=1024, document_tokens=300),
    "tiny": Size(long_tokens=256, width=32, layers=2, vocab_size=300, document_tokens=20),
}
_SIZES["gpu"] = _SIZES["full"]


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare the peak memory of one long row with that of 8 short rows, for a GPT-2 and a Llama."""
    size = _SIZES[config.size]
    lengths = (size.long_tokens // _TIMES, size.long_tokens)
    for family, settings in size.models.items():
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            options = _options(work, settings, config)
            teacher = load_teacher(options)
            for packing, document_tokens in (("single", size.long_tokens + 1), ("packed", size.document_tokens)):
                passes = {
                    tokens: _teacher_pass(teacher, options, config, tokens, document_tokens) for tokens in lengths
                }
                yield _grown(f"teacher's pass, {family}, {packing} documents", passes, config)
            steps = {tokens: _student_steps(work / f"steps-{tokens}", settings, config, tokens) for tokens in lengths}
            yield _grown(f"student's step, {family}", steps, config)


def _options(work: Path, settings: Settings, config: BenchConfig) -> PrecomputeConfig:
    """Save a teacher, and return the options of a run whose passes hold one long row, or as many tokens."""
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
    model.save_pretrained(work / "teacher")
    save_byte_tokenizer(work / "teacher")
    long_tokens = _SIZES[config.size].long_tokens
    return PrecomputeConfig(
        teacher=str(work / "teacher"), data="stdlib", out=work / "out", device=config.device, block_size=long_tokens,
        batch_tokens=long_tokens,
    )  # fmt: skip


def _teacher_pass(
    teacher: Teacher, options: PrecomputeConfig, config: BenchConfig, block_size: int, document_tokens: int
) -> Action:
    """Return an action that makes a shard of a row of long_tokens, or of as many tokens in shorter rows."""
    sizes = Sizes(
        block_size=block_size, num_blocks=options.block_size // block_size, batch_tokens=options.block_size,
        document_tokens=document_tokens,
    )  # fmt: skip
    work = Path(options.teacher).with_name(f"{block_size}-{document_tokens}")
    options = dataclasses.replace(options, out=work, block_size=block_size)
    bench = Bench(config, sizes, options, teacher, None, work)
    return bench.writing_pass(bench.blocks(document_tokens), SETTINGS["sampled tail"])


def _student_steps(work: Path, settings: Settings, config: BenchConfig, block_size: int) -> Action:
    """Return an action that runs training steps on one row of long_tokens each, or on as many tokens."""
    size = _SIZES[config.size]
    batch_blocks = size.long_tokens // block_size
    cache = write_soft_targets_cache(work / "cache", RECORD_BATCH_ROWS, block_size, size.vocab_size)
    preset = work / "student.json"
    preset.write_text(json.dumps(settings))
    settings_of_run = TrainConfig(
        cache=cache.path, out=work / "student", preset=str(preset), batch_blocks=batch_blocks, device=config.device
    )
    learner = make_learner(settings_of_run, cache, choose_device(config.device))
    rows = next(cache.record_batches("soft_targets", "train"))

    def steps() -> None:
        for step in range(_STEPS):
            learner.step(step, {"soft_targets": rows.slice(step * batch_blocks, batch_blocks)})

    return steps


def _grown(what: str, actions: dict[int, Action], config: BenchConfig) -> Comparison:
    for action in actions.values():  # warm up
        action()
    megabytes: dict[int, list[float]] = {tokens: [] for tokens in actions}
    for _ in range(min(config.rounds, _MOST_ROUNDS)):
        for tokens, action in actions.items():
            megabytes[tokens].append(peak_extra_bytes(action, config.device) / 1e6)
    short, long = megabytes
    return Comparison(
        what=f"peak memory of a {what}",
        ours=f"1 row of {long}",
        reference=f"{long // short} rows of {short}",
        our_values=megabytes[long],
        reference_values=megabytes[short],
        unit="MB",
        target=_FLAT,
    )
