"""Agreement against plain float64 sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from student.export.agreement import Agreement, compare, pool


def plain(expected: np.ndarray, found: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """KL, top-1 agreement and perplexity, position by position."""
    kls, agree, nlls = [], [], []
    for a, b, label in zip(expected.astype(np.float64), found.astype(np.float64), labels, strict=True):
        p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        kls.append(sum(p_i * (math.log(p_i) - math.log(q_i)) for p_i, q_i in zip(p, q, strict=True)))
        agree.append(p.argmax() == q.argmax())
        nlls.append(-math.log(q[label]))
    return float(np.mean(kls)), float(np.mean(agree)), math.exp(float(np.mean(nlls)))


def test_measures_are_those_of_a_plain_loop_and_tokens_count_alike() -> None:
    rng = np.random.default_rng(0)
    lengths = (1, 5, 30)
    expected = [rng.normal(size=(n, 7)).astype(np.float32) * 3 for n in lengths]
    found = [e + rng.normal(size=e.shape).astype(np.float32) * 0.5 for e in expected]
    labels = [rng.integers(0, 7, n) for n in lengths]
    pooled = pool([compare(e, f, y) for e, f, y in zip(expected, found, labels, strict=True)])
    kl, top1, perplexity = plain(np.concatenate(expected), np.concatenate(found), np.concatenate(labels))
    assert pooled.num_targets == 36
    assert pooled.kl_nats == pytest.approx(kl, rel=1e-9)
    assert pooled.top1_agreement == pytest.approx(top1)
    assert pooled.perplexity == pytest.approx(perplexity, rel=1e-9)
    assert pooled.student_perplexity == pytest.approx(plain(*[np.concatenate(expected)] * 2, np.concatenate(labels))[2])
    assert pooled.max_logit_difference == pytest.approx(np.abs(np.concatenate(found) - np.concatenate(expected)).max())


@pytest.mark.parametrize(
    ("kl_nats", "is_within"), [(0.01, True), (0.011, False), (-1e-17, True), (math.nan, False), (math.inf, False)]
)
def test_what_is_beyond_the_bound_or_no_number_is_not_within(kl_nats: float, is_within: bool) -> None:
    found = Agreement(
        num_targets=1, kl_nats=kl_nats, top1_agreement=1, max_logit_difference=0, perplexity=1, student_perplexity=1
    )
    assert found.is_within(0.01) is is_within
