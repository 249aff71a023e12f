"""Logits of −∞ are ids with probability 0, in every kind; NaN and +∞ are refused as what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.errors import TeacherOutputError
from pipeline.producers.sparsify import sparsify
from storage import Cache, verify_cache
from storage.rows import beams, samples, soft_targets

# make_tokenizer's ids of bytes that stand in no English text.
IMPOSSIBLE = slice(221, 256)


@pytest.mark.parametrize("top_k", [3, 150])  # fewer and more than there are possible ids
@pytest.mark.parametrize("tail_weight", [None, 0.02])
@pytest.mark.parametrize("temperatures", [(1.0, 2.0), (2.0,)])
def test_impossible_ids_change_nothing(top_k: int, tail_weight: float | None, temperatures: tuple[float, ...]) -> None:
    """As if the vocabulary did not have them: values in float64, and the same draws."""
    rng = np.random.default_rng(0)
    logits, is_possible = rng.normal(0, 2, (40, 257)), rng.random(257) < 0.5
    is_possible[-1] = False
    possible = np.flatnonzero(is_possible)
    labels, uniforms = rng.integers(0, len(possible), 40), torch.from_numpy(rng.random(40))
    settings: dict[str, Any] = {"top_k": top_k, "tail_weight": tail_weight, "temperatures": temperatures}
    with_all = torch.from_numpy(np.where(is_possible, logits, -np.inf)).float()
    found = sparsify(with_all, torch.from_numpy(possible[labels]), uniforms, **settings).flatten()
    few = logits[:, possible]
    logprobs = few - np.log(np.exp(few).sum(1, keepdims=True))
    expected = sparsify(torch.from_numpy(few).float(), torch.from_numpy(labels), uniforms, **settings).flatten()
    np.testing.assert_array_equal(found.head_size, np.minimum(expected.head_size, len(possible)))
    np.testing.assert_array_equal(found.tail_size, expected.tail_size)
    np.testing.assert_array_equal(found.ids, possible[expected.ids])
    np.testing.assert_allclose(found.entropy, -(np.exp(logprobs) * logprobs).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.label_logprob, logprobs[np.arange(40), labels], rtol=1e-5, atol=1e-6)
    for name in ("logprobs", "tail_logprob"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    for temperature, logmass in expected.tempered_tail_logmass.items():
        np.testing.assert_allclose(found.tempered_tail_logmass[temperature], logmass, rtol=1e-5, atol=1e-5)


def test_a_token_of_the_text_that_is_impossible_is_found() -> None:
    logits = torch.zeros(2, 9)
    logits[1, 4] = -torch.inf
    found = sparsify(
        logits,
        torch.tensor([4, 4]),
        torch.zeros(2, dtype=torch.float64),
        top_k=2,
        tail_weight=None,
        temperatures=(1.0,),
    ).flatten()
    assert np.isfinite(found.label_logprob).tolist() == [True, False]


@pytest.fixture
def precompute(helpers: ModuleType, text_file: Path, tmp_path: Path) -> Callable[..., tuple[Any, Cache]]:
    """Makes a phi, whose head has a bias, with this value in some rows of it, and a cache of it."""

    def make(value: float, rows: slice, **changes: object) -> tuple[Any, Cache]:
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            "phi", vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, initializer_range=0.25, bos_token_id=None, eos_token_id=256,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            model.lm_head.bias[rows] = value
        model.save_pretrained(tmp_path / "teacher")
        helpers.make_tokenizer(tmp_path / "teacher")
        settings = {"max_tokens": 1500} | changes
        return model, helpers.precomputed(
            helpers.tiny_config(tmp_path / "teacher", text_file, tmp_path / "cache", **settings)
        )

    return make


def test_a_teacher_with_impossible_ids(
    precompute: Callable[..., tuple[Any, Cache]], forced_logprobs: Callable[[Any, Any, Any], np.ndarray]
) -> None:
    model, cache = precompute(-torch.inf, IMPOSSIBLE)
    assert verify_cache(cache.path).problems == ()
    impossible = set(range(257)[IMPOSSIBLE])
    batch = next(iter(cache.record_batches("soft_targets", "train")))
    assert not impossible & set(soft_targets.decode(batch).ids.tolist())
    row = batch.to_pylist()[0]
    length = row["segment_lengths"][0]
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([row["input_ids"][:length]])).logits[0, :-1].double(), dim=1)
    entropy = -torch.xlogy(logprobs.exp(), logprobs.exp()).sum(1).numpy()
    np.testing.assert_allclose(row["entropy"][: length - 1], entropy, rtol=2**-10)
    for sample in samples.decode(next(iter(cache.record_batches("samples", "train")))):
        expected = forced_logprobs(model, sample.prompt_ids, sample.completion_ids)
        np.testing.assert_allclose(sample.completion_logprobs, expected, rtol=2**-11, atol=2e-3)
        assert not impossible & set(sample.completion_ids.tolist())
    for beam in beams.decode(next(iter(cache.record_batches("beams", "train")))):
        for candidate in beam.candidates:
            expected = forced_logprobs(model, beam.prompt_ids, candidate.candidate_ids)
            assert candidate.sum_logprob == pytest.approx(expected.sum(), abs=2e-3)


@pytest.mark.parametrize("kind", ["soft_targets", "samples", "beams"])
@pytest.mark.parametrize(
    ("value", "rows", "words"),
    [
        (torch.nan, slice(3, 4), "contain NaN"),
        (torch.inf, slice(3, 4), r"contain \+infinity"),
        (-torch.inf, slice(None), "are all -infinity"),
    ],
)
def test_what_is_no_distribution_is_named(
    precompute: Callable[..., tuple[Any, Cache]], kind: str, value: float, rows: slice, words: str
) -> None:
    with pytest.raises(TeacherOutputError, match=f"{kind}, train split, row 0: the teacher's logits {words}"):
        precompute(value, rows, kinds=(kind,))


def test_a_text_that_its_teacher_calls_impossible(precompute: Callable[..., tuple[Any, Cache]]) -> None:
    """Its perplexity would be infinite. e and t are in every document."""
    with pytest.raises(TeacherOutputError, match="row 0: the teacher's logits give a token of the text probability 0"):
        precompute(-torch.inf, slice(0, 120), kinds=("soft_targets",))
