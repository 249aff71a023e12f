"""The benchmark of long rows compares rows with the same number of tokens, for both families."""

from __future__ import annotations

from scripts.bench.config import BenchConfig
from scripts.bench.growth import long_rows


def test_every_model_is_compared() -> None:
    found = list(long_rows.run(BenchConfig(name="scale", size="tiny", rounds=1)))
    assert [c.what.removeprefix("peak memory of a ") for c in found] == [
        f"{what}, {family}{packing}"
        for family in ("GPT-2", "Llama")
        for what, packing in (
            ("teacher's pass", ", single documents"), ("teacher's pass", ", packed documents"), ("student's step", "")
        )
    ]  # fmt: skip
    assert {(c.ours, c.reference) for c in found} == {("1 row of 256", "8 rows of 32")}
    assert all(min(c.our_values + c.reference_values) > 0 for c in found)
