"""What the study of beginnings trains: teacher, students, and the groups of them that are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scripts.study.networks import StudentConfig, TeacherConfig

# Peak rates of every comparison but that of rates, which found them.
_NEW_RATE, _CUT_RATE = 1e-3, 1e-3

_NUM_EPOCHS = 12


@dataclass(frozen=True, kw_only=True)
class Size:
    """Amount of text, shapes and training of teacher and students, and the seeds of the main comparison.

    A new student has the width of the teacher and as many layers as a cut one. shapes: students of other shapes.
    """

    vocab_size: int
    max_megabytes: float
    teacher: TeacherConfig
    student: StudentConfig
    seeds: tuple[int, ...]
    shapes: tuple[str, ...]
    block_size: int = 128
    num_held_out: int = 128


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One student of a comparison: its beginning, its targets, the positions it learns at, and its rate."""

    beginning: str
    targets: str = "full"
    positions: str = "all"
    learning_rate: float | None = None
    warmup_share: float = 0.05

    def config(self, student: StudentConfig) -> StudentConfig:
        """Return the settings that train this student, from those that all of a run share."""
        rate = self.learning_rate or (_NEW_RATE if self.beginning.startswith("fresh") else _CUT_RATE)
        return replace(student, learning_rate=rate, warmup_share=self.warmup_share)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A group of students that take each step together. Rows of one table may come from several runs.

    batches: multiple of the size's batch_blocks in a step. num_blocks: blocks of text that are read again and again;
    None reads all, each at most once.
    """

    table: str
    name: str
    seed: int
    steps: int
    arms: tuple[Arm, ...]
    batches: int = 1
    num_blocks: int | None = None

    def config(self, student: StudentConfig) -> StudentConfig:
        """Return the settings that all students of this run share."""
        return replace(student, steps=self.steps, batch_blocks=self.batches * student.batch_blocks)


_BEGINNINGS = ("fresh", "even", "importance")
_CHOICES = (
    "entropy 20 %", "entropy 50 %", "entropy 80 %", "unsure or wrong 20 %", "unsure or wrong 50 %", "random 20 %",
)  # fmt: skip
_TARGETS = ("full", "tail_32_top_0", "ce")
_AT_ALL = tuple(Arm(beginning=beginning, targets=targets) for beginning in _BEGINNINGS for targets in _TARGETS)
_WITH_LABELS = tuple(Arm(beginning=name, targets="full + 0.1 ce") for name in ("fresh", "even"))
_AT_POSITIONS = tuple(Arm(beginning=name, positions=choice) for name in _BEGINNINGS for choice in _CHOICES)
_SPARSE_AT_POSITIONS = tuple(
    Arm(beginning=beginning, positions=choice, targets=targets)
    for beginning in _BEGINNINGS
    for choice in _CHOICES
    for targets in _TARGETS[1:]
)


def runs_of(size: Size) -> Iterator[Run]:
    """Yield every run of a size, the most telling first.

    All seeds repeat what is compared closely. The first seed tries the rest too.
    """
    steps, (first, *others) = size.student.steps, size.seeds
    for beginning, rates in (("even", (5e-4, 1e-3, 2e-3, 4e-3)), ("fresh", (1e-3, 2e-3, 4e-3))):
        arms = _by_rates(beginning, rates)
        yield Run(table="rates", name=f"rates-{beginning}", seed=first, steps=steps // 2, arms=arms)
    yield from _compared(first, steps, (*_AT_ALL, *_WITH_LABELS))
    for seed in others:
        yield from _compared(seed, steps, _AT_ALL)
    yield from _with_first_seed_alone(size)


def _compared(seed: int, steps: int, at_all: tuple[Arm, ...]) -> Iterator[Run]:
    yield Run(table="targets", name="targets", seed=seed, steps=steps, arms=at_all)
    yield Run(table="targets", name="positions", seed=seed, steps=steps, arms=_AT_POSITIONS)
    yield Run(table="targets", name="positions-sparse", seed=seed, steps=steps, arms=_SPARSE_AT_POSITIONS)
    arms = tuple(Arm(beginning="even", targets=targets) for targets in _TARGETS[:2])
    yield Run(table="a third of the steps", name="third", seed=seed, steps=steps // 3, arms=arms)


def _with_first_seed_alone(size: Size) -> Iterator[Run]:
    steps, first = size.student.steps, size.seeds[0]
    for beginning in ("even", "fresh"):
        arms = tuple(Arm(beginning=beginning, positions=choice) for choice in ("all", *_CHOICES[:3]))
        yield Run(table="three times the steps", name=f"long-{beginning}", seed=first, steps=3 * steps, arms=arms)
    arms = tuple(Arm(beginning="even", targets=name) for name in ("full", "tail_32_top_0", "tail_8_top_0"))
    num_blocks = max(1, steps // _NUM_EPOCHS) * size.student.batch_blocks
    yield Run(table=f"{_NUM_EPOCHS} epochs", name="epochs", seed=first, steps=steps, arms=arms, num_blocks=num_blocks)
    arms = tuple(Arm(beginning=name) for name in size.shapes)
    yield Run(table="shapes", name="shapes", seed=first, steps=steps, arms=arms)
    arms = tuple(Arm(beginning="even", targets=name) for name in _TARGETS[:2])
    yield Run(table="four times the batch", name="large", seed=first, steps=steps // 3, arms=arms, batches=4)


def _by_rates(beginning: str, rates: tuple[float, ...]) -> tuple[Arm, ...]:
    of_rates = [Arm(beginning=beginning, learning_rate=rate) for rate in rates]
    of_warmups = [Arm(beginning=beginning, learning_rate=1e-3, warmup_share=share) for share in (0.0, 0.2)]
    return (*of_rates, *of_warmups)


SIZES = {
    "quick": Size(
        vocab_size=2048,
        max_megabytes=6,
        teacher=TeacherConfig(layers=4, width=128, steps=200, batch_blocks=16, learning_rate=2e-3),
        student=StudentConfig(layers=2, width=128, steps=48, batch_blocks=8),
        seeds=(0,),
        shapes=("fresh 4x64", "layers 0", "even, mlp 50 %"),
        num_held_out=32,
    ),
    "cpu": Size(
        vocab_size=2048,
        max_megabytes=24,
        teacher=TeacherConfig(layers=6, width=192, steps=900, batch_blocks=16, learning_rate=2e-3),
        student=StudentConfig(layers=2, width=192, steps=240, batch_blocks=8),
        seeds=(0, 1, 2),
        shapes=("fresh 4x128", "even, mlp 50 %", "layers 0"),
    ),
}
