"""The benchmark of generation compares like with like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.bench.config import BenchConfig
from scripts.bench.generate import (
    SIZES,
    Work,
    our_beams,
    our_samples,
    prepare,
    run,
    save_ending_teacher,
    their_beams,
    their_samples,
)

CONFIG = BenchConfig(name="generate", size="tiny", rounds=2)
SIZE = SIZES[CONFIG.size]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    directory = tmp_path_factory.mktemp("ending")
    save_ending_teacher(directory, CONFIG)
    return prepare(directory, CONFIG, "float32", SIZE.num_texts)


def test_it_runs_and_has_targets_for_float32() -> None:
    comparisons = list(run(CONFIG))
    assert len(comparisons) == 6
    assert [c.target for c in comparisons] == [1.5] * 3 + [None] * 3
    for comparison in comparisons:
        assert len(comparison.our_values) == len(comparison.reference_values) == 2
        assert min(comparison.our_values + comparison.reference_values) > 0


def test_both_sides_draw_texts_that_end_after_a_third_of_the_most_tokens(work: Work) -> None:
    torch.manual_seed(0)
    for generate in (our_samples, their_samples):
        lengths = [len(text) for _ in range(4) for text in generate(work)]
        assert len(lengths) == 4 * SIZE.num_texts
        assert max(lengths) == SIZE.max_new_tokens
        assert np.mean(lengths) / SIZE.max_new_tokens == pytest.approx(1 / 3, abs=0.08)


def test_both_sides_find_the_same_candidates(work: Work) -> None:
    found, expected = ([tuple(ids) for ids in generate(work)] for generate in (our_beams, their_beams))
    assert len(found) == 4 * SIZE.num_texts
    assert found == expected
