"""The study of bytes measures what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.producers.sparsify import SparseTargets
from scripts.study.bytes import BytesConfig, Positions, _base_tables, _by_probability, _settings_table, rounding_kl
from scripts.study.bytes import sparse_targets as targets_of
from storage.rows.bit_rounding import round_float16


def example() -> SparseTargets:
    """Two positions: a head of three and a tail; a head of one and no tail."""
    logprobs = np.log(np.array([0.41, 0.07, 0.23, 1.0], np.float32))
    return SparseTargets(
        head_size=np.array([3, 1]),
        tail_size=np.array([2, 0]),
        ids=np.array([5, 9, 30, 2, 7, 11]),
        logprobs=logprobs,
        tail_logprob=np.array([np.log(np.float32(0.29)), -np.inf], np.float32),
        entropy=np.zeros(2, np.float32),
        label_logprob=np.zeros(2, np.float32),
        largest_logit=np.zeros(2, np.float32),
        tempered_tail_logmass={},
    )


@pytest.mark.parametrize("bits", [1, 3, 6, 10])
def test_rounding_kl_is_the_divergence_of_rounded_from_exact_targets(bits: int) -> None:
    found = example()
    p = np.exp(np.append(found.logprobs[:3], found.tail_logprob[0]).astype(np.float64))
    rounded = [*round_float16(found.logprobs[:3], bits), round_float16(found.tail_logprob[:1], 10)[0]]
    q = np.exp(np.array(rounded, np.float64))
    p, q = p / p.sum(), q / q.sum()
    expected = (p * np.log(p / q)).sum() / 2  # the second position has nothing to round
    assert rounding_kl(found, bits) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_order_by_probability_permutes_heads_alone() -> None:
    found = _by_probability(example())
    assert found.ids.tolist() == [5, 30, 9, 2, 7, 11]
    assert np.exp(found.logprobs).tolist() == pytest.approx([0.41, 0.23, 0.07, 1.0])


def test_scaled_logits_have_the_entropy_asked_for_and_the_tables_are_complete(
    teacher_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    config = BytesConfig(
        teacher=str(teacher_dir), data=str(text_file), entropy_nats=3.0, num_blocks=96, block_size=16, device="cpu"
    )
    positions = Positions(config, tmp_path)
    probs = torch.cat([torch.softmax(logits.double(), dim=1) for _, logits in positions.logits()])
    assert float(torch.special.entr(probs).sum(1).mean()) == pytest.approx(3.0, abs=0.1)
    settings: list[tuple[int, int | None]] = [(1, 32), (4, None)]
    targets = targets_of(positions, settings)
    assert all(len(found.entropy) == 96 * 16 for found in targets.values())
    assert (targets[4, None].head_size == 4).all()
    rows = _settings_table(targets, positions, 16).splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| 1", "1/32"], ["| 4", "none"]]
    payload, whole = (float(cell.strip(" |")) for cell in rows[0].split(" | ")[-2:])
    assert 0 < payload < whole
    assert "| usual |" in _base_tables(targets[1, 32], positions, config)
