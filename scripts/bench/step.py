"""Measure a whole training step on cached targets against a step on labels alone through transformers.

Both sides train the same model with the same optimiser, clipping and precision. Ours reads, verifies and decodes its
rows. The reference has its tokens in memory. A second reference is a model of the same size with transformers'
defaults: another activation kernel, attention and dropout. A third is the same model with a loss that costs nothing: of
the head, only its three products are computed. On a CPU every variant has a process of its own, because what the
trainer sets up for a CPU holds for a whole process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.step_variants import (
    DEFAULTS,
    OURS,
    PRODUCTS,
    REFERENCE,
    OurStep,
    Shape,
    StepProcess,
    make_cache,
    make_step,
    shapes_of,
)
from scripts.support.measure import Action, interleaved_seconds
from scripts.support.neighbour import NEIGHBOURS, busy_neighbour
from storage.reading.cache import Cache
from student.model.device import choose_device

_TARGETS = {REFERENCE: 0.95, DEFAULTS: None, PRODUCTS: None}
_BESIDE_TARGETS = {REFERENCE: 1.0}


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare the seconds of a step for each shape, on a CPU also beside a busy neighbour."""
    for shape in shapes_of(config):
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            scratch = Path(name)
            cache = make_cache(scratch / "cache", shape)
            on_cpu = config.device == "cpu"
            steps = _processes(cache, shape, scratch, stack) if on_cpu else _in_this_process(cache, shape, config)
            yield from _compare(steps, shape, config)


def _processes(cache: Cache, shape: Shape, scratch: Path, stack: ExitStack) -> dict[str, Action]:
    """Return an action for each variant, which asks its process to run a step. `stack` ends the processes."""
    steps: dict[str, Action] = {}
    for number, variant in enumerate((OURS, *_TARGETS)):
        process = StepProcess(variant, cache, shape, scratch / f"process-{number}")
        stack.callback(process.close)
        steps[variant] = process.ask
    return steps


def _in_this_process(cache: Cache, shape: Shape, config: BenchConfig) -> dict[str, Action]:
    device = choose_device(config.device)
    ours = OurStep(cache, shape, device)
    return {variant: make_step(variant, ours, cache, shape, device) for variant in (OURS, *_TARGETS)}


def _compare(steps: dict[str, Action], shape: Shape, config: BenchConfig) -> Iterator[Comparison]:
    what = f"step of {shape.batch_blocks} × {shape.block_size} tokens, {shape.preset}"
    yield from _times(steps, what, _TARGETS, config)
    for neighbour in NEIGHBOURS if config.device == "cpu" else ():
        with busy_neighbour(neighbour):
            yield from _times(steps, f"{what}, beside {neighbour}", _BESIDE_TARGETS, config)


def _times(
    steps: dict[str, Action], what: str, targets: dict[str, float | None] | dict[str, float], config: BenchConfig
) -> Iterator[Comparison]:
    """Compare our step with each reference that has an entry in `targets`."""
    seconds = interleaved_seconds({name: steps[name] for name in (OURS, *targets)}, config.rounds, config.device)
    for reference, target in targets.items():
        yield Comparison.between(seconds, OURS, reference, what=what, unit="s", target=target)
