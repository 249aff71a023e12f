"""Measure our training step with the student's layers compiled against the same step run operation by operation.

The trainer compiles nothing. Layers are compiled one by one, so that one compilation serves all of them. A GPU needs
Triton and a C compiler for this, a CPU a C++ compiler.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.step import OurStep, make_cache, shapes_of
from scripts.support.measure import interleaved_seconds
from student.model.device import choose_device

# The first steps compile, and compile again for other numbers of documents.
_WARM_UP = 3


def run(config: BenchConfig) -> Iterator[Comparison]:
    """Compare the seconds of a step, for each shape."""
    device = choose_device(config.device)
    for shape in shapes_of(config):
        with tempfile.TemporaryDirectory() as scratch:
            cache = make_cache(Path(scratch) / "cache", shape)
            steps = {name: OurStep(cache, shape, device) for name in ("compiled", "eager")}
            for layer in steps["compiled"].learner.parallel.model.transformer.h:
                layer.compile()
            seconds = interleaved_seconds(steps, config.rounds, config.device, _WARM_UP)
        what = f"step of {shape.batch_blocks} × {shape.block_size} tokens, {shape.preset}"
        yield Comparison.between(seconds, "compiled", "eager", what=what, unit="s")
