"""What gpu.sh measured becomes one table, whatever is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.gpu.busy import kernel_seconds
from scripts.bench.gpu.ceilings import run as measure_ceilings
from scripts.bench.gpu.floors import WORK, num_parameters
from scripts.bench.gpu.table import render
from scripts.bench.report import as_json


def config(name: str, **changes: object) -> BenchConfig:
    return BenchConfig(**({"name": name, "dtype": "bfloat16", "size": "gpu"} | changes))  # type: ignore[arg-type]


def document(used: BenchConfig, comparisons: list[Comparison]) -> str:
    return as_json({used.name: (comparisons, 5_000_000_000)}, {"device": "a card"}, used)


def compared(what: str, ours: str, reference: str, values: tuple[float, float], unit: str) -> Comparison:
    return Comparison(
        what=what, ours=ours, reference=reference, our_values=[values[0]], reference_values=[values[1]], unit=unit
    )


def test_parameters_are_those_of_the_models() -> None:
    assert num_parameters(config("loss").model) == pytest.approx(124.4e6, rel=1e-3)
    assert num_parameters(config("loss", shape="xl").model) == pytest.approx(1.5576e9, rel=1e-3)


def test_what_a_token_asks_for() -> None:
    """Counted by hand for GPT-2 124M: 12 layers of width 768, 50,257 ids."""
    layers, head = 2 * 12 * 12 * 768**2, 2 * 768 * 50_257
    work = {name: make(config(name)) for name, make in WORK.items()}
    assert work["precompute"].flops == layers + head + 2 * 12 * 768 * 1024
    assert work["step"].flops == 3 * (layers + head + 2 * 12 * 768 * 512)
    assert work["loss"].flops == 3 * head
    weights = 124_318_464  # 12 · 12 · 768² + 768 · (50,257 + 1,024)
    assert work["precompute"].moved_bytes == pytest.approx(2 * weights / 16_384 + 8 * 50_257)
    assert work["step"].moved_bytes == pytest.approx(28 * weights / 16_384 + 8 * 50_257)
    assert work["generate"].moved_bytes == pytest.approx(2 * weights / 256 + 2 * 2 * 12 * 768 * 32 + 8 * 50_257)
    assert work["loss"].tokens_per_s(0.5) == 32_768
    assert work["precompute"].tokens_per_s(2.0) == 500_000


def test_time_in_which_a_kernel_runs_counts_once() -> None:
    events = [
        {"cat": "kernel", "ts": 100.0, "dur": 50.0},
        {"cat": "kernel", "ts": 120.0, "dur": 10.0},  # beside the first
        {"cat": "kernel", "ts": 140.0, "dur": 30.0},  # begins in it
        {"cat": "kernel", "ts": 400, "dur": 5},
        {"cat": "gpu_memcpy", "ts": 200.0, "dur": 100.0},
        {"cat": "cuda_runtime", "ts": 0.0, "dur": 900.0},
        {"name": "process_name", "ph": "M"},
    ]
    assert kernel_seconds(reversed(events)) == pytest.approx(75e-6)
    assert kernel_seconds([]) == 0.0


def test_ceilings_are_those_of_the_device() -> None:
    product, copy = measure_ceilings(BenchConfig(name="ceilings", size="tiny", rounds=1))
    assert 1e8 < min(product.our_values + product.reference_values) < 1e16
    assert 1e7 < min(copy.our_values + copy.reference_values) < 1e14


def test_the_table_has_a_row_per_comparison_and_a_column_per_shape(tmp_path: Path) -> None:
    ceilings = [
        compared("product of two matrices", "bfloat16", "float32", (800e12, 50e12), "FLOP/s"),
        compared("copy in memory", "read and written", "sent to the host", (4e12, 50e9), "B/s"),
    ]
    (tmp_path / "ceilings.json").write_text(document(config("ceilings"), ceilings))
    for shape, micros in (("124m", 1.0), ("xl", 10.0)):
        times = [compared(f"time, bfloat16, {name}", "whole pass", "bare model", (micros, 2 * micros), "µs/token")
                 for name in ("top-k 64", "sampled tail")]  # fmt: skip
        used = config("precompute", shape=shape, device="cuda")
        (tmp_path / f"precompute-{shape}.json").write_text(document(used, times))
    (tmp_path / "step-xl.json").write_text("")  # stopped before it printed
    (tmp_path / "parts.tsv").write_text("precompute-124m\t0\t9\nstep-xl\t124\t75\nloss-xl\t1\t3\n")
    text = render(tmp_path)
    assert "Machine: device a card." in text
    assert "bfloat16 8e+14, float32 5e+13 FLOP/s" in text
    assert (
        "| precompute: time, bfloat16, sampled tail, whole pass / bare model "
        "| 1 / 2 µs/token = 0.500 | 10 / 20 µs/token = 0.500 |" in text
    )
    # A million tokens a second of 266 MFLOP, of 800 TFLOP/s.
    assert "| 1,000,000; 33.2%; " in text
    assert "| precompute: peak memory | 5.00 GB | 5.00 GB |" in text
    assert "step" not in text.split("Failed")[0]
    assert text.endswith("Failed: step-xl (out of time after 75 s), loss-xl (exit code 1 after 3 s); see the logs.")


def test_what_was_not_measured_is_not_known(tmp_path: Path) -> None:
    times = [compared("time, bfloat16, sampled tail", "whole pass", "bare model", (1.0, 2.0), "µs/token")]
    (tmp_path / "precompute-124m.json").write_text(document(config("precompute"), times))
    (tmp_path / "parts.tsv").write_text("precompute-124m\t0\t9\n")
    text = render(tmp_path)
    assert "Ceilings: not known." in text
    assert "| 1,000,000; not known; not known |" in text
    assert "| precompute: share of time in which a kernel runs on a GPU | not known |" in text
    assert text.endswith("All 1 parts passed.")
    assert json.loads((tmp_path / "precompute-124m.json").read_text())["settings"]["size"] == "gpu"
