"""teachonce-student: train a small model from a cache, measure it, and use it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from storage.command import run_command
from storage.errors import ConfigError
from student.config import EvaluateConfig, ReportConfig, SamplingConfig, TrainConfig
from student.export.config import ExportConfig


def train(config: Annotated[TrainConfig, arg(name="")]) -> int:
    """Train a student from a cache alone; a rerun with the same settings resumes."""
    from student.processes import is_first_process
    from student.training.trainer import train as run

    out = run(config)
    if is_first_process():
        line = shlex.join(["teachonce-student", "evaluate", str(out), "--cache", str(config.cache)])
        print(f"{out}: complete; measure it with: {line}", file=sys.stderr)
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


def report(config: Annotated[ReportConfig, arg(name="")]) -> int:
    """Write a page about one or more students: what they learnt from the teacher, and what they lost."""
    from student.report.whole import report as write

    page_bytes = write(config)
    print(f"{config.out}: {page_bytes:,} bytes; open it in a browser")
    return 0


def select(student: Positional[Path], prompt: str, candidates: Path) -> int:
    """Rank candidate continuations of a prompt, best first, with their scores in nats.

    Args:
        student: Directory of the student.
        prompt: Text to continue; a control token that it spells out is characters.
        candidates: File with one candidate per line.
    """
    from student.generation.candidates import rank_candidates, read_candidates, trained_length_penalty
    from student.model.framing import read_framing
    from student.model.loading import load_student
    from student.model.tokenizers import load_tokenizer

    texts = read_candidates(candidates)
    model, tokenizer = load_student(student).eval(), load_tokenizer(student)
    framing = read_framing(student, model, tokenizer)
    for ranked in rank_candidates(model, tokenizer, framing, prompt, texts, trained_length_penalty(student)):
        print(f"{ranked.score:9.4f}  {ranked.text}")
    return 0


def generate(
    student: Positional[Path],
    sampling: Annotated[SamplingConfig, arg(name="")],
    prompt: str | None = None,
    candidates: int | None = None,
    interactive: bool = False,
    chat: bool = False,
    device: str = "auto",
) -> int:
    """Continue a prompt, or with --interactive several prompts in turn.

    Args:
        student: Directory of the student.
        sampling: How to sample text.
        prompt: Text to continue; a control token that it spells out is characters.
        candidates: Number of continuations to draw; print them best first, with scores in nats and how they ended.
        chat: The prompt is what a user says: answer it, as the chat template renders it that the student was trained
            with.
        interactive: Read prompts from the terminal or a pipe, one per line, and continue each with another seed.
        device: cpu, cuda, cuda:1, …; auto takes a GPU when there is one.
    """
    from student.generation.interactive import converse, write_answer

    if interactive == (prompt is not None):
        raise ConfigError("expected either --prompt TEXT or --interactive")
    from student.generation.generator import Generator

    generator = Generator(student, device=device, chat=chat)
    if prompt is None:
        converse(generator, sampling, candidates)
    else:
        write_answer(generator, prompt, sampling, candidates)
    return 0


def export(
    config: Annotated[ExportConfig, arg(name="")], json_output: Annotated[bool, arg(name="json")] = False
) -> int:
    """Write a student for a small device, run the result on held-out text, and keep it only if it agrees.

    Largest mean KL(student‖exported) in nats per token: onnx 1e-06 (int8: 0.005), gguf 2e-05 (q8_0: 0.001),
    safetensors 2e-05. Above it, the export is deleted and the exit code is 2.

    Args:
        config: What to write, and what to run it on.
        json_output: Print JSON.
    """
    from student.export.command import export_student

    trial = export_student(config)
    if json_output:
        print(json.dumps(trial.as_dict(), indent=1))
    else:
        print(f"{config.out}: kept; {trial.verdict()}\n{trial.table()}")
    return 0


def main() -> None:
    """Run the teachonce-student command."""
    commands: dict[str, Callable[..., int]] = {
        "train": train,
        "evaluate": evaluate,
        "report": report,
        "select": select,
        "generate": generate,
        "export": export,
    }
    run_command(lambda: tyro.extras.subcommand_cli_from_dict(commands, prog="teachonce-student", description=__doc__))
