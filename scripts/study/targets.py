"""Find the sparse targets that train the best student per byte. All schemes are compared on the same batches.

    python -m scripts.study.targets prepare --size cpu --out study   # text and tokenizer
    python -m scripts.study.targets run --size cpu --out study       # in as many terminals as there are cores
    python -m scripts.study.targets noise --size cpu --out study     # noise in the gradient, by kind of draw
    python -m scripts.study.targets plot --out study                 # docs/targets.svg and tables in Markdown

`run` trains one teacher. Then it trains, for each seed, one student per scheme with the same initial weights, batches
and steps, so that schemes are compared in pairs. It repeats this with fewer schemes at another batch size, learning
rate and β2. `--size quick` takes about ten minutes on two cores and `cpu` two hours. `gpu` needs a large GPU and uses
the vocabulary size of GPT-2.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from scripts.study import report, text
from scripts.study.measures import evaluate_models
from scripts.study.networks import StudentConfig, TeacherConfig, hidden_states, logprobs
from scripts.study.noise import gradient_noise
from scripts.study.schemes import Teaching, all_schemes
from scripts.study.sharing import claimed, shared_teacher
from scripts.study.students import train_students, uniforms_of
from storage.tensors.matmul_precision import use_fast_matmul
from student.model.device import choose_device

_FEW = ("ce", "full", "random_sampling_50", "tail_16_top_0", "tail_32_top_0", "tail_64_top_0")
_NUM_BLOCKS_FOR_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Size:
    """Amount of text, shapes and training of teacher and students, seeds and variations."""

    vocab_size: int
    max_megabytes: float
    teacher: TeacherConfig
    student: StudentConfig
    seeds: tuple[int, ...]
    variations: tuple[str, ...]
    device: str
    block_size: int = 128


_VARIATIONS = ("main", "small_batch", "large_rate", "slow_beta2")
SIZES = {
    "quick": Size(
        vocab_size=4096,
        max_megabytes=10,
        teacher=TeacherConfig(layers=4, width=256, steps=300, batch_blocks=32, learning_rate=2e-3),
        student=StudentConfig(layers=2, width=128, steps=100, batch_blocks=16),
        seeds=(0,),
        variations=("main",),
        device="cpu",
    ),
    "cpu": Size(
        vocab_size=4096,
        max_megabytes=40,
        teacher=TeacherConfig(layers=4, width=256, steps=1800, batch_blocks=32, learning_rate=2e-3),
        student=StudentConfig(layers=2, width=128, steps=300, batch_blocks=16),
        seeds=(0, 1, 2),
        variations=_VARIATIONS,
        device="cpu",
    ),
    "gpu": Size(
        vocab_size=50257,
        max_megabytes=40,
        teacher=TeacherConfig(),
        student=StudentConfig(),
        seeds=(0, 1, 2),
        variations=_VARIATIONS,
        device="cuda",
    ),
}


def main() -> None:
    """Run a subcommand."""
    tyro.extras.subcommand_cli_from_dict(
        {"prepare": prepare, "run": run, "noise": noise, "plot": plot}, description=__doc__
    )


def prepare(size: Literal["quick", "cpu", "gpu"], out: Path = Path("study")) -> None:
    """Collect text and tokenize it."""
    print(json.dumps(text.prepare(out, SIZES[size].vocab_size, SIZES[size].max_megabytes)))


def run(size: Literal["quick", "cpu", "gpu"], out: Path = Path("study")) -> None:
    """Train the teacher and all students. Several processes may run at once, and a rerun continues."""
    run_study(SIZES[size], out)


def noise(size: Literal["quick", "cpu", "gpu"], out: Path = Path("study")) -> None:
    """Print the noise of sampled targets in the gradient of a student in the middle of its training.

    Uses the teacher that `run` trained, or trains it first.
    """
    chosen = SIZES[size]
    use_fast_matmul()
    device = choose_device(chosen.device)
    train, _ = text.read_blocks(out, chosen.block_size)
    teacher = shared_teacher(chosen.teacher, out, train, device)
    found = gradient_noise(chosen.student, teacher, train, warm_up_steps=chosen.student.steps // 2)
    print(report.noise_table(found))


def plot(out: Path = Path("study"), figure: Path = Path("docs/targets.svg")) -> None:
    """Plot quality against bytes and print tables in Markdown."""
    results = report.read_results(out)
    report.draw(results, figure)
    print(report.tables(results))


def variation_of(student: StudentConfig, name: str) -> StudentConfig:
    """Return the students' settings in a variation."""
    return {
        "main": student,
        "small_batch": replace(student, batch_blocks=max(1, student.batch_blocks // 4)),
        "large_rate": replace(student, learning_rate=student.learning_rate * 4),
        "slow_beta2": replace(student, beta2=0.999),
    }[name]


def run_study(size: Size, out: Path) -> None:
    """Train every variation and seed of `size` that has no file in OUT/runs yet, and write OUT/facts.json.

    Several processes may share an OUT. Each locks the runs that it trains.
    """
    device = choose_device(size.device)
    use_fast_matmul()
    train, held_out = text.read_blocks(out, size.block_size)
    (out / "runs").mkdir(exist_ok=True)
    teacher = shared_teacher(size.teacher, out, train, device)
    for name in size.variations:
        config = variation_of(size.student, name)
        schemes = [s for s in all_schemes() if name == "main" or s.name in _FEW]
        for seed in size.seeds:
            with claimed(out / "runs" / f"{name}-{seed}.json") as path:
                if path:
                    found = train_students(config, schemes, teacher, train, held_out, seed, name)
                    content = {"variation": name, "settings": asdict(config), "seed": seed, "schemes": found}
                    path.write_text(json.dumps(content, indent=1))
    about = {
        "text": text.read_facts(out),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores",
        "teacher_config": asdict(size.teacher),
        "teacher": evaluate_models({"teacher": teacher}, teacher, held_out)["teacher"],
        "bytes_per_token": _stored_bytes(teacher, held_out[:_NUM_BLOCKS_FOR_BYTES], size.block_size),
    }
    (out / "facts.json").write_text(json.dumps(about, indent=1))


def _stored_bytes(teacher: Any, blocks: torch.Tensor, block_size: int) -> dict[str, float]:
    """Return the bytes per token of each scheme's payload (sizes, ids, values) on held-out blocks."""
    device = next(teacher.parameters()).device
    logprobs_CV = logprobs(teacher, hidden_states(teacher, blocks.to(device)[:, :-1]))
    uniforms = uniforms_of(torch.arange(len(blocks)), block_size, 0, device)
    teaching = Teaching.of(logprobs_CV, uniforms, blocks[:, 1:].reshape(-1).to(device))
    return {s.name: s.stored_bytes(teaching, block_size) for s in all_schemes() if s.stored_bytes is not None}


if __name__ == "__main__":
    main()
