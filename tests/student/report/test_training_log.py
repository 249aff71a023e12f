"""A log of any length becomes curves of at most 120 points, which keep its ends, its extremes and its mean."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from student.report.curves import training_charts
from student.report.training_log import Curve, TrainingLog
from student.training.run_log import metrics_lines
from tests.student.report.test_runs import make_run, values


@pytest.mark.parametrize("num_values", [0, 1, 2, 119, 120])
def test_a_short_curve_is_kept_as_it_is(num_values: int) -> None:
    logged = [(10.0 * place, place**2 / 7) for place in range(num_values)]
    curve = Curve()
    for step, value in logged:
        curve.add(step, value)
    assert values(curve) == logged


@pytest.mark.parametrize("num_values", [121, 122, 237, 238, 239, 1000, 9999])
def test_a_long_curve_keeps_ends_extremes_and_mean(num_values: int) -> None:
    logged = np.random.default_rng(num_values).normal(size=num_values)
    curve = Curve()
    for step, value in enumerate(logged):
        curve.add(step, value)
    points = curve.points
    assert 60 <= len(points) <= 120
    assert [(p.step, p.mean, p.low, p.high) for p in (points[0], points[-1])] == [
        (step, logged[step], logged[step], logged[step]) for step in (0, num_values - 1)
    ]
    start = 0
    for point in points:
        stretch = logged[start : start + point.num_values]
        assert point.step == start + point.num_values - 1
        assert (point.low, point.high) == (stretch.min(), stretch.max())
        assert point.mean == pytest.approx(stretch.mean(), abs=1e-12)
        start += point.num_values
    assert start == num_values
    assert len({point.num_values for point in points[1:-2]}) == 1


def line(step: int, **changes: Any) -> dict[str, Any]:
    measures = {"perplexity": 50.0, "kl_nats": 0.5, "kl_is_lower_bound": False, "kl_standard_error": None}
    return {"step": step, "labels_nats": 2.0, "seconds": step / 4, "validation": measures} | changes


def test_a_page_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """One evaluation in the middle is far off: the page must say so."""
    num_lines, peaks = 20_000, []
    odd = line(0)["validation"] | {"perplexity": 987.5}
    for factor in (1, 4):
        lines = [line(step) for step in range(1, factor * num_lines // 4)]
        lines[len(lines) // 2]["validation"] = odd
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(found) + "\n" for found in lines))
        tracemalloc.start()
        log = TrainingLog.of(metrics_lines(tmp_path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert log.last["seconds"] == lines[-1]["seconds"]
        charts = training_charts([make_run(log=log)])
        assert charts is not None
        assert "987.5" in charts
        assert charts.count("<tr>") < 400
        assert len(charts) < 200_000
    assert peaks[1] < 1.1 * peaks[0] < 1_000_000


def test_a_band_is_drawn_and_explained_where_values_were_joined() -> None:
    for num_lines, is_thinned in ((120, False), (121, True)):
        charts = training_charts([make_run(metrics=[line(step) for step in range(num_lines)])])
        assert charts is not None
        assert ("the band reaches from the lowest to the highest" in charts) == is_thinned
        assert (">highest</th>" in charts) == is_thinned
