"""What every family is tried on: texts and prompts of many lengths, a run over them, and a cache for the students."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig, precompute
from scripts.support.teachers import save_random_teacher

TAIL_WEIGHT = 0.05
_PROSE = "the teacher ran once and wrote down what it knew so that a student may learn from it alone"


def write_texts(path: Path) -> Path:
    """Write rows with a text of 1 to 14 words and a prompt of 1 to 4, as JSON lines; return the path."""
    rng, words = random.Random(0), _PROSE.split()
    rows = [
        {
            "text": " ".join(rng.choices(words, k=rng.randint(1, 14))),
            "prompt": " ".join(rng.choices(words, k=1 + i % 4)),
        }
        for i in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_run(teacher: Path, data: Path, out: Path) -> PrecomputeConfig:
    """Return a run of all three kinds whose blocks hold several texts, in passes of several blocks and prompts."""
    return PrecomputeConfig(
        teacher=str(teacher),
        data=str(data),
        out=out,
        block_size=32,
        batch_tokens=128,
        validation_fraction=0.25,
        device="cpu",
        quiet=True,
        soft_targets=SoftTargetsConfig(top_k=4, tail_weight=TAIL_WEIGHT, mantissa_bits=10),
        samples=SamplesConfig(num_prompts=6, prompt_column="prompt", max_new_tokens=6),
        beams=BeamsConfig(num_prompts=6, prompt_column="prompt", num_beams=3, num_candidates=3, max_new_tokens=4),
    )


def make_student_cache(directory: Path) -> Path:
    """Precompute below `directory` from a small random GPT-2; return the cache."""
    teacher = directory / "teacher"
    save_random_teacher(
        teacher,
        vocab_size=257,
        eos_token_id=256,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.25,
    )
    cache = directory / "cache"
    precompute(tiny_run(teacher, write_texts(directory / "texts.jsonl"), cache))
    return cache
