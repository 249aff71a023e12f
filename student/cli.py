"""teachonce-student: train a small model from a cache, measure it, and use it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from storage.command import run_command
from student.config import EvaluateConfig, TrainConfig


def train(config: Annotated[TrainConfig, arg(name="")]) -> int:
    """Train a student from a cache alone; a rerun with the same settings resumes."""
    from student.trainer import train as run

    out = run(config)
    print(f"{out}: complete; measure it with: teachonce-student evaluate {out} --cache {config.cache}", file=sys.stderr)
    return 0


def evaluate(
    config: Annotated[EvaluateConfig, arg(name="")], json_output: Annotated[bool, arg(name="json")] = False
) -> int:
    """Measure a student against the cached teacher on the validation split.

    Args:
        config: What to measure.
        json_output: Print JSON.
    """
    from student.evaluation import evaluate as run
    from student.evaluation.table import render

    found = run(config)
    if json_output:
        print(json.dumps(found, indent=1))
    else:
        print(render(found))
    return 0


def select(student: Positional[Path], prompt: str, candidates: Path) -> int:
    """Rank candidate continuations of a prompt, best first, with their scores in nats.

    Args:
        student: Directory of the student.
        prompt: Text to continue.
        candidates: File with one candidate a line.
    """
    from student.model import load_student, load_tokenizer
    from student.selection import rank_candidates, read_candidates, trained_length_penalty

    texts = read_candidates(candidates)
    model, tokenizer = load_student(student).eval(), load_tokenizer(student)
    for ranked in rank_candidates(model, tokenizer, prompt, texts, trained_length_penalty(student)):
        print(f"{ranked.score:9.4f}  {ranked.text}")
    return 0


def generate(
    student: Positional[Path],
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> int:
    """Continue a prompt.

    Args:
        student: Directory of the student.
        prompt: Text to continue.
        max_new_tokens: Longest continuation.
        temperature: Sampling temperature; 0 takes the most probable token.
        top_p: Nucleus to sample from.
        seed: Seed of the draws.
    """
    from student.generation import generate_text

    print(
        generate_text(student, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    )
    return 0


def main() -> None:
    """Entry point."""
    commands: dict[str, Callable[..., int]] = {
        "train": train,
        "evaluate": evaluate,
        "select": select,
        "generate": generate,
    }
    run_command(lambda: tyro.extras.subcommand_cli_from_dict(commands, prog="teachonce-student", description=__doc__))
