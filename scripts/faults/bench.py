"""A teacher and a text so small that precompute makes a cache of all kinds in a fifth of a second."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from pipeline.config import PrecomputeConfig
from scripts.support.teachers import save_random_teacher
from student.config import TrainConfig

_WORDS = "a soak test hurts whole caches and then looks closely at what is left"
_SHAPE = {"vocab_size": 257, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Inputs of runs: a teacher, a text and a student's shape, all below one directory."""

    directory: Path
    teacher: Path
    text: Path
    student_shape: Path

    def precompute_arguments(self) -> list[str]:
        """Return the flags, without --out, of a run that writes several shards of each kind."""
        settings = {
            "teacher": self.teacher,
            "data": self.text,
            "document-separator": "\\n",
            "block-size": 24,
            "batch-tokens": 512,
            "shard-tokens": 400,
            "validation-fraction": 0.25,
            "device": "cpu",
            "soft-targets.top-k": 4,
            "soft-targets.tail-weight": 0.1,
            "soft-targets.temperatures": "1.0 2.0",
            "samples.num-prompts": 15,
            "samples.prompt-tokens": 4,
            "samples.max-new-tokens": 3,
            "beams.num-prompts": 28,
            "beams.num-beams": 2,
            "beams.num-candidates": 2,
            "beams.prompt-tokens": 4,
            "beams.max-new-tokens": 2,
        }
        return ["--quiet", *(word for name, value in settings.items() for word in [f"--{name}", *str(value).split()])]

    @functools.cached_property
    def settings(self) -> PrecomputeConfig:
        """The same settings as a config, parsed once."""
        return tyro.cli(PrecomputeConfig, args=[*self.precompute_arguments(), "--out", str(self.directory)])

    def precompute(self, out: Path, **changes: Any) -> object:
        """Run teachonce-precompute's work in this process."""
        from pipeline.run import precompute

        return precompute(replace(self.settings, out=out, **changes))

    def precompute_command(self, out: Path) -> None:
        """Run teachonce-precompute itself in this process, from its flags to its exit status."""
        from pipeline.cli import main

        sys.argv = ["teachonce-precompute", *self.precompute_arguments(), "--out", str(out)]
        main()

    def train(self, cache: Path, out: Path) -> object:
        """Train a student for nine steps."""
        from student.training.trainer import train

        config = TrainConfig(
            cache=cache,
            out=out,
            preset=str(self.student_shape),
            max_steps=9,
            checkpoint_every=2,
            evaluate_every=4,
            batch_blocks=4,
            batch_samples=4,
            batch_beams=2,
            device="cpu",
            quiet=True,
        )
        return train(config)


def make_bench(directory: Path) -> Bench:
    """Write the teacher, its text and the student's shape, and return their paths."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    documents = [" ".join(rng.choices(_WORDS.split(), k=rng.randint(3, 20))) for _ in range(30)]
    bench = Bench(
        directory=directory,
        teacher=directory / "teacher",
        text=directory / "text.txt",
        student_shape=directory / "student.json",
    )
    bench.text.write_text("\n".join(documents))
    torch.set_num_threads(1)
    save_random_teacher(bench.teacher, initializer_range=0.4, eos_token_id=256, **_SHAPE)
    assert str(bench.settings.out) == str(directory)  # parsed here, so that children need not
    bench.student_shape.write_text(json.dumps({"model_type": "gpt2"} | _SHAPE))
    return bench


def snapshot(directory: Path) -> dict[str, str]:
    """Return all paths below a directory. The value is the sha256 of a file, or "" for a directory."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(directory.rglob("*"))
    }


def difference(found: dict[str, str], expected: dict[str, str]) -> str | None:
    """Describe how two snapshots differ. Return None when they are equal."""
    parts: list[Any] = [
        (what, sorted(names))
        for what, names in (
            ("missing", expected.keys() - found.keys()),
            ("too many", found.keys() - expected.keys()),
            ("other bytes", {name for name in found.keys() & expected.keys() if found[name] != expected[name]}),
        )
        if names
    ]
    return "; ".join(f"{what}: {', '.join(names[:4])}" for what, names in parts) or None
