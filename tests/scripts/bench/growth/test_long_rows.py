"""The benchmark of long rows compares rows with the same number of tokens, for both families."""

from __future__ import annotations

import pytest

from scripts.bench.config import BenchConfig
from scripts.bench.growth import long_rows
from scripts.support.measure import Action


def test_every_model_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def peak_extra_bytes(action: Action, device: str) -> int:  # without the collections of garbage of the real one
        action()
        measured.append(device)
        return len(measured) * 1_000_000

    monkeypatch.setattr(long_rows, "peak_extra_bytes", peak_extra_bytes)
    found = list(long_rows.run(BenchConfig(name="scale", size="tiny", rounds=1)))
    assert [c.what.removeprefix("peak memory of a ") for c in found] == [
        f"{what}, {family}{packing}"
        for family in ("GPT-2", "Llama")
        for what, packing in (
            ("teacher's pass", ", single documents"), ("teacher's pass", ", packed documents"), ("student's step", "")
        )
    ]  # fmt: skip
    assert {(c.ours, c.reference) for c in found} == {("1 row of 256", "8 rows of 32")}
    assert [(c.our_values, c.reference_values) for c in found] == [([i + 2.0], [i + 1.0]) for i in range(0, 12, 2)]
    assert set(measured) == {"cpu"}
