"""The frame of the benchmarks: what is measured in turns, and what is said about it."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from scripts.bench.__main__ import run_bench
from scripts.bench.comparison import Comparison
from scripts.bench.config import BenchConfig
from scripts.bench.report import as_json, render
from scripts.support.measure import interleaved_seconds, peak_extra_bytes
from scripts.support.report import machine
from storage.errors import ConfigError


def comparison(**changes: object) -> Comparison:
    facts = {
        "what": "time", "ours": "fast", "reference": "slow", "our_values": [1.0, 2.0, 6.0],
        "reference_values": [2.0, 4.0, 4.0], "unit": "s", "target": 0.5,
    }  # fmt: skip
    return Comparison(**(facts | changes))


def test_ratios_are_taken_within_rounds_and_judged_by_their_median() -> None:
    assert comparison().ratios == [0.5, 0.5, 1.5]
    assert comparison().ratio == 0.5
    assert comparison().is_met is True
    assert comparison(target=0.49).is_met is False
    assert comparison(target=0.51, more_is_better=True).is_met is False
    assert comparison(target=None).is_met is None


def test_variants_take_turns_and_the_order_turns_around() -> None:
    ran: list[str] = []
    seconds = interleaved_seconds({name: lambda name=name: ran.append(name) for name in "abc"}, rounds=2)
    assert "".join(ran) == "abc" + "abc" + "cba"  # the first is the warm-up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_seconds_are_of_the_variant_they_stand_for() -> None:
    seconds = interleaved_seconds({"none": lambda: None, "some": lambda: time.sleep(0.05)}, rounds=2)
    assert min(seconds["some"]) >= 0.05 > max(seconds["none"])


def test_the_peak_counts_what_was_held_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(4):
            np.ones(8 << 20)

    def together() -> None:
        [np.ones(8 << 20) for _ in range(4)]

    assert 60e6 < peak_extra_bytes(one_after_the_other) < 150e6
    assert 250e6 < peak_extra_bytes(together) < 350e6


@pytest.mark.parametrize(("changes", "verdict"), [({}, "met"), ({"target": 0.1}, "MISSED")])
def test_what_is_printed(changes: dict[str, object], verdict: str) -> None:
    facts = machine("cpu")
    text = render("step", [comparison(**changes)], 5_000_000, facts)
    assert all(
        part in text for part in ("fast: 2 s", "slow: 4 s", "0.500", "(0.500–1.500)", "peak memory 5 MB", verdict)
    )
    document = as_json({"step": ([comparison(**changes)], 5_000_000)}, facts, BenchConfig(name="step"))
    (found,) = json.loads(document)["benches"]["step"]["comparisons"]
    assert found["ratio"] == 0.5
    assert found["is_met"] is (verdict == "met")


def test_an_unknown_device_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.bench import __main__ as command
    from storage.errors import ConfigError

    monkeypatch.setattr("sys.argv", ["bench", "loss", "--device", "cuda"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no CUDA device"):
        command.main()


def test_defaults_are_the_published_ones() -> None:
    config = BenchConfig(name="loss")
    assert (config.device, config.size) == ("cpu", "full")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["precompute", "loss", "step", "generate"])
def test_a_benchmark_runs_on_a_gpu(name: str) -> None:
    comparisons = list(run_bench(name, BenchConfig(name=name, size="tiny", rounds=1, device="cuda")))
    assert comparisons
    for comparison in comparisons:
        assert all(value > 0 for value in comparison.our_values), comparison.what


@pytest.mark.parametrize("setting", ["rounds", "threads"])
def test_a_benchmark_runs_at_least_once(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"--{setting} is 0, expected at least 1"):
        BenchConfig(name="write", **{setting: 0})
