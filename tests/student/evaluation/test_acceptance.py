"""What speculative decoding would save, against the algorithm itself: enumerated in float64, and run with models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from storage import Cache
from storage.rows.samples import decode
from student.errors import BrokenStudentError
from student.evaluation.acceptance import DRAFT_TOKENS, draft_steps, measure_acceptance
from student.evaluation.table import render

END = 0


class Chain:
    """A teacher p and a student s of three tokens, each a law of the next token given the last one; 0 ends a text."""

    def __init__(self, seed: int, end_probability: float) -> None:
        rng = np.random.default_rng(seed)
        self.s = rng.dirichlet(np.ones(3), 3)
        self.p = np.column_stack([np.full(3, end_probability), (1 - end_probability) * rng.dirichlet(np.ones(2), 3)])

    def texts(self, max_new_tokens: int) -> list[tuple[list[int], float]]:
        """Every text that the teacher may write after a 1, with its probability."""
        found = []
        for length in range(1, max_new_tokens + 1):
            for ids in itertools.product(range(3), repeat=length):
                probability = float(np.prod([self.p[a, b] for a, b in itertools.pairwise([1, *ids])]))
                if probability > 0 and END not in ids[:-1] and (length == max_new_tokens or ids[-1] == END):
                    found.append((list(ids), probability))
        return found

    def steps(self, last: int, place: int, num_drafted: int, max_new_tokens: int) -> np.ndarray:
        """Expected (tokens, steps) from here on, by the rules of speculative decoding: draft, accept or redraw.

        num_drafted: tokens that this step has drafted and accepted; `place`: tokens that the text has.
        """
        if num_drafted == 0 and (last == END or place > max_new_tokens - DRAFT_TOKENS):
            return np.zeros(2)
        total = np.array([0.0, float(num_drafted == 0)])
        p, s = self.p[last], self.s[last]
        accepted = np.minimum(p, s) if num_drafted < DRAFT_TOKENS else np.zeros(3)  # s min(1, p / s)
        for law, next_drafted in ((accepted, num_drafted + 1), (p - accepted, 0)):
            for token in np.flatnonzero(law):
                total[0] += law[token]
                if token != END or next_drafted == 0:
                    total += law[token] * self.steps(token, place + 1, next_drafted, max_new_tokens)
        return total


@pytest.mark.parametrize("end_probability", [0.0, 0.3])
@pytest.mark.parametrize("max_new_tokens", [3, 4, 7])
def test_sums_over_the_teachers_texts_are_those_of_the_algorithm(max_new_tokens: int, end_probability: float) -> None:
    chain = Chain(7, end_probability)
    expected = chain.steps(1, 0, 0, max_new_tokens)
    total, first = np.zeros(2), 0.0
    for ids, probability in chain.texts(max_new_tokens):
        a = np.array([min(1.0, chain.s[x, y] / chain.p[x, y]) for x, y in itertools.pairwise([1, *ids])])
        padded, is_cut = np.zeros((1, max_new_tokens)), ids[-1] != END
        padded[0, : len(ids)] = a
        found = draft_steps(padded, np.array([len(ids)]), np.array([is_cut]), max_new_tokens)
        total += probability * np.concatenate(found)
        first += probability * a[0]
    assert total == pytest.approx(expected, rel=1e-12)
    assert first == pytest.approx(np.minimum(chain.p[1], chain.s[1]).sum(), rel=1e-12)


def test_equal_shares_at_every_token_are_leviathans_formula() -> None:
    """(1 − α^5) / (1 − α), once the text is long."""
    for alpha in (0.0, 0.3, 0.8, 1.0):
        tokens, steps = draft_steps(np.full((1, 1000), alpha), np.array([1000]), np.array([True]), 1000)
        assert tokens[0] / steps[0] == pytest.approx(sum(alpha**j for j in range(5)), rel=1e-12)


class Decoder:
    """Speculative decoding of many texts in step. Behind a text stand other tokens, which no model sees."""

    def __init__(self, teacher: Any, student: Any, prompts: np.ndarray, max_new_tokens: int) -> None:
        self._models, self._rng = (teacher, student), np.random.default_rng(1)
        self._ids = np.pad(prompts, ((0, 0), (0, max_new_tokens + DRAFT_TOKENS + 1)))
        self._first, self._max_new_tokens = prompts.shape[1], max_new_tokens

    @torch.inference_mode()
    def _laws(self, which: int, places: np.ndarray) -> np.ndarray:
        """Laws of the tokens at `places`."""
        model, ids = self._models[which], torch.from_numpy(self._ids[:, : places.max()])
        hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state
        return torch.softmax(model.lm_head(hidden[np.arange(len(places)), places - 1]).double(), dim=1).numpy()

    def _draw(self, laws: np.ndarray) -> np.ndarray:
        sums = laws.cumsum(1)
        return (sums <= self._rng.random((len(laws), 1)) * sums[:, -1:]).sum(1)

    def run(self, draft_tokens: int, *, with_bonus: bool, end: int) -> tuple[np.ndarray, ...]:
        """Tokens, steps, and accepted drafts of each text, of steps whose drafts are inside the longest text."""
        texts, place = np.arange(len(self._ids)), np.full(len(self._ids), self._first)
        is_open = np.ones(len(texts), dtype=bool)
        tokens, steps, accepted = np.zeros((3, len(texts)))
        while (is_open := is_open & (place - self._first <= self._max_new_tokens - draft_tokens)).any():
            steps += is_open
            in_step = is_open.copy()
            for drafted in range(draft_tokens + with_bonus):
                p = self._laws(0, place)
                if drafted < draft_tokens:
                    s = self._laws(1, place)
                    draft = self._draw(s)
                    is_kept = self._rng.random(len(texts)) < p[texts, draft] / s[texts, draft]
                    token = np.where(is_kept, draft, self._draw(np.maximum(p - s, 1e-300)))
                else:
                    is_kept, token = np.zeros(len(texts), dtype=bool), self._draw(p)
                self._ids[in_step, place[in_step]] = token[in_step]
                place += in_step
                tokens += in_step
                accepted += in_step & is_kept
                is_open &= ~(in_step & (token == end))
                in_step &= is_kept & is_open
        return tokens, steps, accepted


def ratio_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    ratio = sums.sum() / counts.sum()
    return ratio, float(np.sqrt(((sums - ratio * counts) ** 2).sum()) / counts.sum())


@pytest.fixture(scope="module")
def sampled(
    helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Cache]:
    def make(**changes: object) -> Cache:
        samples = {"num_prompts": 40, "per_prompt": 4, "prompt_tokens": 6, "max_new_tokens": 24} | changes
        config = helpers.tiny_config(
            teacher_dir, text_file, tmp_path_factory.mktemp("sampled") / "cache", kinds=("samples",),
            validation_fraction=0.5, samples=helpers.SamplesConfig(**samples),
        )  # fmt: skip
        return helpers.precomputed(config)

    return make


@pytest.fixture(scope="module")
def sampled_cache(sampled: Callable[..., Cache]) -> Cache:
    return sampled()


def near_teacher(teacher_dir: Path, noise: float) -> Any:
    """The teacher with noise on its weights."""
    model = GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


def test_decoding_with_real_models_accepts_and_saves_what_the_cache_says(
    sampled_cache: Cache, teacher_dir: Path
) -> None:
    teacher, student = near_teacher(teacher_dir, 0), near_teacher(teacher_dir, 0.03)
    found = measure_acceptance(student, sampled_cache, quiet=True)
    rows = [row for batch in sampled_cache.record_batches("samples", "validation") for row in decode(batch)]
    assert found["num_sampled_tokens"] == sum(len(row.completion_ids) for row in rows)
    prompts = np.stack([row.prompt_ids.astype(np.int64) for row in rows])
    decoder = Decoder(teacher, student, np.repeat(prompts, 2, axis=0), 24)
    tokens, steps, _ = decoder.run(DRAFT_TOKENS, with_bonus=True, end=256)
    # One draft at a time, and none of the teacher's own behind it, drafts every token of a text.
    written, _, accepted = decoder.run(1, with_bonus=False, end=256)
    for name, sums, counts in (
        ("tokens_per_teacher_step", tokens, steps),
        ("acceptance", accepted, written),
    ):
        simulated, error = ratio_error(sums, counts)
        low, high = found[f"{name}_interval"]
        assert abs(simulated - found[name]) < 3 * np.hypot(error, (high - low) / 3.92), name
        assert error < 0.04 * simulated
    assert 0.3 < found["acceptance"] < 0.9


def test_a_student_that_is_its_teacher_is_accepted_up_to_rounding(sampled_cache: Cache, teacher_dir: Path) -> None:
    found = measure_acceptance(near_teacher(teacher_dir, 0), sampled_cache, quiet=True)
    batches = sampled_cache.record_batches("samples", "validation")
    logprobs = np.concatenate([row.completion_logprobs for batch in batches for row in decode(batch)])
    lost = 1 - found["acceptance"]
    assert 0 < lost < 1.05 * 2**-13 * np.abs(logprobs.astype(np.float64)).mean()
    assert 5 - 11 * lost < found["tokens_per_teacher_step"] < 5.0


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.0, 0.9)])
def test_texts_of_another_law_say_why_nothing_is_known(
    sampled: Callable[..., Cache],
    make_student: Callable[..., Any],
    evaluated: Callable[..., Any],
    temperature: float,
    top_p: float,
) -> None:
    found = evaluated(make_student(), sampled(num_prompts=6, temperature=temperature, top_p=top_p), num_prompts=0)
    assert found["acceptance"] is found["acceptance_interval"] is found["tokens_per_teacher_step"] is None
    line = (
        "Speculative decoding: not known, for the cache's texts were drawn at temperature "
        f"{temperature:g} and top-p {top_p:g}; acceptance needs texts drawn at temperature 1 and top-p 1"
    )
    assert line in render(found).splitlines()


def test_texts_shorter_than_a_draft_give_a_share_alone(
    sampled: Callable[..., Cache], make_student: Callable[..., Any]
) -> None:
    found = measure_acceptance(make_student(), sampled(num_prompts=6, max_new_tokens=3), quiet=True)
    assert found["acceptance"] > 0
    assert found["tokens_per_teacher_step"] is found["tokens_per_teacher_step_interval"] is None


def test_a_student_without_distributions_is_broken(sampled_cache: Cache, make_student: Callable[..., Any]) -> None:
    model = make_student()
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(torch.nan)
    with pytest.raises(BrokenStudentError):
        measure_acceptance(model, sampled_cache, quiet=True)
