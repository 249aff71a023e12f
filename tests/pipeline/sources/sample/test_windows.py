"""Windows are drawn the same every time, two from each stretch, and none overlaps another."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.sample.windows import WINDOW_BYTES, Line, Window, draw_windows


@pytest.mark.parametrize("num_bytes", [4 * WINDOW_BYTES, 100 * WINDOW_BYTES + 1, 4 << 20, 10**12 + 7])
def test_two_windows_of_each_stretch(num_bytes: int) -> None:
    windows = draw_windows([num_bytes], seed=1)
    assert windows == draw_windows([num_bytes], seed=1)
    assert [window.stratum for window in windows] == [i // 2 for i in range(len(windows))]
    assert all(before.stop <= after.start for before, after in itertools.pairwise(windows))
    assert windows[-1].stop <= num_bytes
    assert sum(window.weight for window in windows) == -(-num_bytes // WINDOW_BYTES)


def test_every_window_is_drawn_as_often_as_its_weight_says() -> None:
    num_windows, num_draws = 43, 1500
    drawn = np.zeros(num_windows)
    for seed in range(num_draws):
        for window in draw_windows([num_windows * WINDOW_BYTES], seed):
            drawn[window.start // WINDOW_BYTES] += window.weight
    assert np.abs(drawn / num_draws - 1).max() < 6 / np.sqrt(num_draws)


def test_a_window_may_hold_several_files(tmp_path: Path) -> None:
    for name, size in {"a": 3, "b": 0, "c": 2, "d": 10}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    line = Line([tmp_path / name for name in "abcd"])
    found = line.ranges(Window(stratum=0, weight=1, start=2, stop=7))
    assert [(part.path.name, part.file_bytes, part.start, part.stop) for part in found] == [
        ("a", 3, 2, 3),
        ("c", 2, 0, 2),
        ("d", 10, 0, 2),
    ]
    assert line.num_bytes == 15


def test_long_files_are_stretches_of_their_own(tmp_path: Path) -> None:
    sizes = {"a": 10, "b": 900_000, "c": 9_000, "d": 9_000, "e": 2_000_000, "f": 3}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    line = Line([tmp_path / name for name in sizes])
    assert line.stretches() == [10 + 900_000, 18_000, 2_000_000 + 3]
    windows = draw_windows(line.stretches(), seed=0)
    assert sum(window.weight for window in windows) == sum(-(-size // WINDOW_BYTES) for size in line.stretches())
    assert all(
        len({part.path for part in line.ranges(window)} & {tmp_path / "b", tmp_path / "e"}) < 2 for window in windows
    )


@pytest.mark.parametrize("seed", range(30))
def test_any_files_have_stretches(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.floor(random.lognormal(random.uniform(4, 12), 2, random.integers(1, 40))).astype(int)
    sizes[0] += 4 * WINDOW_BYTES
    for index, size in enumerate(sizes):
        with (tmp_path / f"{index:02d}").open("wb") as file:
            file.truncate(size)
    line = Line(sorted(tmp_path.iterdir()))
    assert sum(line.stretches()) == line.num_bytes == sizes.sum()
    assert min(line.stretches()) >= 4 * WINDOW_BYTES
    windows = draw_windows(line.stretches(), seed)
    assert all(before.stop <= after.start for before, after in itertools.pairwise(windows))
    assert all(sum(p.stop - p.start for p in line.ranges(w)) == w.stop - w.start for w in windows)
