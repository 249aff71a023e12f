"""Measures of a student against loops over documents with the whole vocabulary, and against the teacher itself."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline import SoftTargetsConfig
from storage import Cache
from storage.errors import NoCacheError
from student import EvaluateConfig, evaluate
from student.errors import (
    BrokenStudentError,
    NoHeldOutRowsError,
    NoSuchStudentError,
    TokenizerMismatchError,
    VocabularyMismatchError,
)
from student.evaluation import blocks, evaluate_model, ranking, ratio_with_error
from student.evaluation.positions import measure_positions
from student.evaluation.table import render
from student.export.command import export_student
from student.export.config import ExportConfig
from student.losses.batches import BlockBatch
from student.losses.targets import SparseTargets
from student.model import build_student


@torch.inference_mode()
def predictions(model: Any, row: dict[str, Any]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(target, label, log-probabilities) of every valid target, one document at a time, in float64."""
    start = 0
    for length in row["segment_lengths"]:
        ids = row["input_ids"][start : start + length]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
        logprobs = torch.log_softmax(logits, dim=1).numpy()
        yield from ((start + i, ids[i + 1], logprobs[i]) for i in range(length - 1))
        start += length


def validation_rows(cache: Cache, kind: str = "soft_targets") -> list[dict[str, Any]]:
    return [row for batch in cache.record_batches(kind, "validation") for row in batch.to_pylist()]


def heads_of(row: dict[str, Any]) -> list[tuple[list[int], np.ndarray, list[int]]]:
    ids, logprobs = iter(row["ids"]), iter(row["logprobs"])
    entries = []
    for head_size, tail_size in zip(row["head_size"], row["tail_size"], strict=True):
        head = [next(ids) for _ in range(head_size)]
        entries.append((head, np.array([next(logprobs) for _ in head]), [next(ids) for _ in range(tail_size)]))
    return entries


def naive_measures(model: Any, cache: Cache, *, tail_weight: float | None) -> dict[str, float]:
    nll, teacher_nll, kl, agrees = [], [], [], []
    ends = []
    for row in validation_rows(cache):
        entries = heads_of(row)
        for t, label, logprobs in predictions(model, row):
            head, head_logprobs, tail = entries[t]
            nll.append(-logprobs[label])
            teacher_nll.append(-row["label_logprob"][t])
            rest = np.setdiff1d(np.arange(len(logprobs)), head)
            if tail_weight is None:
                p = np.exp([*head_logprobs, row["tail_logprob"][t]])
                p /= p.sum()
                log_q = np.append(logprobs[head], np.log(np.exp(logprobs[rest]).sum()) if len(rest) else -np.inf)
                used = p > 0
                kl.append((p[used] * (np.log(p[used]) - log_q[used])).sum())
            else:
                cross = -(np.exp(head_logprobs) * logprobs[head]).sum() - tail_weight * logprobs[tail].sum()
                kl.append(cross - row["entropy"][t])
            best = [i for i, x in zip(head, head_logprobs, strict=True) if x == head_logprobs.max()]
            agrees.append(logprobs.argmax() in best)
        ends.append(len(kl))
    blocks = np.split(np.array(kl) - np.mean(kl), ends[:-1])
    spread = sum(block.sum() ** 2 for block in blocks) * len(blocks) / (len(blocks) - 1)
    return {
        "perplexity": math.exp(np.mean(nll)),
        "teacher_perplexity": math.exp(np.mean(teacher_nll)),
        "kl_nats": float(np.mean(kl)),
        "kl_standard_error": math.sqrt(spread) / len(kl),
        "top1_agreement": float(np.mean(agrees)),
        "num_targets": len(nll),
    }


@pytest.mark.parametrize("kind", ["sampled", "bucketed"])
def test_measures_equal_the_naive_ones(
    request: pytest.FixtureRequest, make_student: Callable[..., Any], kind: str
) -> None:
    cache: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    model = make_student()
    found = evaluate_model(model, cache)
    expected = naive_measures(model, cache, tail_weight=0.05 if kind == "sampled" else None)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert found["kl_is_lower_bound"] == (kind == "bucketed")
    assert found["num_parameters"] == sum(p.numel() for p in model.parameters())


def test_the_way_of_batching_changes_nothing(cache: Cache, make_student: Callable[..., Any]) -> None:
    model = make_student()
    expected = evaluate_model(model, cache)
    for batch_blocks in (1, 5, 1000):
        found = evaluate_model(model, cache, batch_blocks=batch_blocks)
        assert found == pytest.approx(expected, rel=1e-6)
    for max_blocks in (1, 16, 17, 1000):
        part = evaluate_model(model, cache, batch_blocks=5, max_blocks=max_blocks)
        rows = validation_rows(cache)[:max_blocks]
        assert part["num_targets"] == sum(length - 1 for row in rows for length in row["segment_lengths"])


def test_what_does_not_fit_into_memory_is_measured_in_parts(
    cache: Cache, make_student: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_student()
    whole = evaluate_model(model, cache)
    sizes: list[int] = []

    for module, name in ((blocks, "block_batch"), (ranking, "beam_batch")):
        original = getattr(module, name)

        def limited(rows: pa.RecordBatch, *args: Any, original: Any = original, **settings: Any) -> Any:
            if rows.num_rows > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(rows.num_rows)
            return original(rows, *args, **settings)

        monkeypatch.setattr(module, name, limited)
    assert evaluate_model(model, cache) == pytest.approx(whole, rel=1e-6)
    assert sum(sizes) == sum(cache.num_rows(kind, "validation") for kind in ("soft_targets", "beams"))
    monkeypatch.setattr(blocks, "block_batch", lambda *_, **__: torch.empty(1 << 60))
    with pytest.raises(RuntimeError, match=r"can't allocate memory|out of memory"):
        evaluate_model(model, cache)


def naive_positions(model: Any, cache: Cache, *, tail_weight: float | None) -> list[dict[str, Any]]:
    """What is to be known about every valid target."""
    positions = []
    for block, row in enumerate(validation_rows(cache)):
        entries = heads_of(row)
        starts = np.cumsum([0, *row["segment_lengths"]])
        for t, label, logprobs in predictions(model, row):
            head, head_logprobs, tail = entries[t]
            rest = np.setdiff1d(np.arange(len(logprobs)), head)
            if tail_weight is None:
                p = np.exp([*head_logprobs, row["tail_logprob"][t]])
                p /= p.sum()
                log_q = np.append(logprobs[head], np.log(np.exp(logprobs[rest]).sum()))
                kl = (p[p > 0] * (np.log(p[p > 0]) - log_q[p > 0])).sum()
            else:
                kl = -(np.exp(head_logprobs) * logprobs[head]).sum() - tail_weight * logprobs[tail].sum()
                kl -= row["entropy"][t]
            best = [i for i, x in zip(head, head_logprobs, strict=True) if x == head_logprobs.max()]
            positions.append(
                {
                    "block": block,
                    "position": t - max(start for start in starts if start <= t),
                    "entropy": float(row["entropy"][t]),
                    "kl": kl,
                    "in_top5": bool(set(best) & set(np.argsort(-logprobs)[:5])),
                    "student": (math.exp(logprobs.max()), float(logprobs.argmax() == label)),
                    "teacher": (math.exp(head_logprobs.max()), (label in best) / len(best)),
                }
            )
    return positions


def mean_with_error(positions: list[dict[str, Any]]) -> tuple[float, float | None]:
    mean = np.mean([position["kl"] for position in positions])
    blocks = {position["block"]: 0.0 for position in positions}
    for position in positions:
        blocks[position["block"]] += position["kl"] - mean
    if len(blocks) < 2:
        return mean, None
    spread = sum(total**2 for total in blocks.values()) * len(blocks) / (len(blocks) - 1)
    return mean, math.sqrt(spread) / len(positions)


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """All measures of a model that is saved first."""

    def run(model: Any, cache: Cache, **changes: object) -> dict[str, Any]:
        model.save_pretrained(tmp_path / "model")
        settings: dict[str, Any] = {"student": tmp_path / "model", "cache": cache.path, "device": "cpu", "quiet": True}
        return evaluate(EvaluateConfig(**(settings | changes)))

    return run


@pytest.mark.parametrize("kind", ["sampled", "bucketed"])
def test_bins_and_top_five_equal_the_naive_ones(
    request: pytest.FixtureRequest, make_student: Callable[..., Any], evaluated: Callable[..., Any], kind: str
) -> None:
    cache: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    model = make_student()
    found = evaluated(model, cache, batch_blocks=5, num_prompts=0)
    positions = naive_positions(model, cache, tail_weight=0.05 if kind == "sampled" else None)
    assert found["top5_agreement"] == pytest.approx(np.mean([p["in_top5"] for p in positions]))
    assert found["top1_agreement"] < found["top5_agreement"] < 1
    edges = [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    assert [(b["first_position"], b["last_position"]) for b in found["kl_by_position"]] == edges
    for b in found["kl_by_position"]:
        check_bin(b, [p for p in positions if b["first_position"] <= p["position"] <= b["last_position"]])
    for b in found["kl_by_entropy"]:
        assert b["high_nats"] - b["low_nats"] == 0.5
        check_bin(b, [p for p in positions if b["low_nats"] <= p["entropy"] < b["high_nats"]])
    for name in ("kl_by_position", "kl_by_entropy"):
        assert sum(b["num_targets"] for b in found[name]) == found["num_targets"] == len(positions)
    for side in ("student", "teacher"):
        check_calibration(found["calibration"][side], [p[side] for p in positions])


def check_bin(found: dict[str, Any], positions: list[dict[str, Any]]) -> None:
    mean, error = mean_with_error(positions)
    assert found["num_targets"] == len(positions) > 0
    assert found["kl_nats"] == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert found["kl_standard_error"] == (None if error is None else pytest.approx(error, rel=1e-3, abs=1e-5))


def check_calibration(found: dict[str, Any], pairs: list[tuple[float, float]]) -> None:
    error = 0.0
    for b in found["bins"]:
        confidences, accuracies = np.array([pair for pair in pairs if b["low"] < pair[0] <= b["high"]]).T
        assert b["num_targets"] == len(confidences)
        assert b["mean_confidence"] == pytest.approx(confidences.mean(), rel=1e-5)
        assert b["accuracy"] == pytest.approx(accuracies.mean(), abs=1e-9)
        error += len(confidences) / len(pairs) * abs(confidences.mean() - accuracies.mean())
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert sum(b["num_targets"] for b in found["bins"]) == len(pairs)


def test_the_whole_evaluation_holds_what_training_measures_and_intervals_around_it(
    cache: Cache, make_student: Callable[..., Any], evaluated: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_student()
    found = evaluated(model, cache)
    for name, value in evaluate_model(model, cache).items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    assert found["model_bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert found["num_blocks"] == len(validation_rows(cache))
    names = ("perplexity", "teacher_perplexity", "kl_nats", "top1_agreement", "top5_agreement", "kendall_tau")
    for name in names:
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high, name
    low, high = found["kl_nats_interval"]
    assert (high - low) / found["kl_standard_error"] == pytest.approx(2 * 1.96, rel=0.25)
    for side in ("student", "teacher"):
        assert found["generation"][side]["num_texts"] == len(validation_rows(cache, "samples"))
    assert evaluated(model, cache) == found
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_teacher_as_a_student_writes_ranks_and_knows_what_the_teacher_does(
    cache: Cache, teacher_dir: Path, evaluated: Callable[..., Any]
) -> None:
    found = evaluated(GPT2LMHeadModel.from_pretrained(teacher_dir), cache)
    low, high = found["kl_nats_interval"]
    assert low - 0.01 < 0 < high + 0.01
    assert found["top5_agreement"] == 1.0
    assert found["mean_reciprocal_rank"] == found["kendall_tau"] == pytest.approx(1.0)
    assert found["generation"]["student"] == found["generation"]["teacher"]
    errors = [found["calibration"][side]["expected_calibration_error"] for side in ("student", "teacher")]
    assert errors[0] == pytest.approx(errors[1], abs=0.01)
    outside = [b for b in found["kl_by_position"] if abs(b["kl_nats"]) > 4 * b["kl_standard_error"] + 0.01]
    assert not outside


def test_every_cache_gives_every_key_and_none_where_it_has_no_rows(
    cache: Cache, make_cache: Callable[..., Cache], make_student: Callable[..., Any], evaluated: Callable[..., Any]
) -> None:
    model = make_student()
    keys = set(evaluated(model, cache))
    of_blocks = {name for name in keys if name.startswith(("perpl", "teacher", "kl_", "top", "calibration"))}
    of_beams = {name for name in keys if name.startswith(("selection", "mean_reciprocal", "kendall"))}
    for kind, measured in (("soft_targets", of_blocks), ("beams", of_beams), ("samples", {"generation"})):
        found = evaluated(model, make_cache(kinds=(kind,)))
        assert set(found) == keys
        counts = {"num_parameters", "model_bytes", "num_targets", "num_blocks", "num_selections"}
        assert {name for name in keys - counts if found[name] is not None} == measured
        assert (found["num_targets"] is not None) == (kind == "soft_targets")
        assert evaluated(model, make_cache(kinds=(kind,)), num_prompts=0)["generation"] is None


def test_a_cache_that_holds_nothing_out_is_refused(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], evaluated: Callable[..., Any]
) -> None:
    cache = make_cache(validation_fraction=0.0)
    with pytest.raises(NoHeldOutRowsError, match=str(cache.path)):
        evaluated(make_student(), cache)


@pytest.mark.parametrize(
    ("parameter", "place", "value"),
    [
        ("ln_f.bias", slice(None), math.nan),
        ("ln_f.bias", slice(None), math.inf),
        ("wpe.weight", slice(20, 21), math.nan),  # a late position alone
    ],
)
def test_a_student_whose_logits_are_not_finite_is_told(
    cache: Cache,
    make_student: Callable[..., Any],
    evaluated: Callable[..., Any],
    parameter: str,
    place: slice,
    value: float,
) -> None:
    model = make_student()
    with torch.no_grad():
        model.transformer.get_parameter(parameter)[place].fill_(value)
    with pytest.raises(BrokenStudentError):
        evaluated(model, cache)


def test_a_perplexity_beyond_all_floats_is_infinite(
    cache: Cache, make_student: Callable[..., Any], evaluated: Callable[..., Any]
) -> None:
    model = make_student()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(1e6)
    found = evaluated(model, cache, num_prompts=0)
    assert math.isfinite(found["kl_nats"])
    assert found["kl_nats"] > 710
    assert found["perplexity"] == found["perplexity_interval"][0] == math.inf


def test_one_block_has_figures_and_no_intervals(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], evaluated: Callable[..., Any]
) -> None:
    cache = make_cache(kinds=("soft_targets",), max_tokens=300, validation_fraction=0.12, block_size=32)
    found = evaluated(make_student(), cache)
    assert found["num_blocks"] == 1
    assert found["kl_nats"] is not None
    assert {value for name, value in found.items() if name.endswith("_interval")} == {None}
    assert {b["kl_standard_error"] for b in found["kl_by_position"]} == {None}
    assert found["calibration"]["student"]["expected_calibration_error_by_chance"] is None


def in_documents_of_one_token(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same blocks, whose tokens predict nothing."""
    nothing = dict.fromkeys(("head_size", "tail_size"), [0] * 32) | {"ids": [], "logprobs": []}
    rows = [row | nothing | {"segment_lengths": [1] * 33} for row in batch.to_pylist()]
    return pa.RecordBatch.from_pylist(rows, schema=batch.schema)


def test_blocks_without_a_target_have_no_figures(
    cache: Cache, make_student: Callable[..., Any], evaluated: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {kind: list(cache.record_batches(kind, "validation")) for kind in ("soft_targets", "samples", "beams")}
    stored["soft_targets"] = [in_documents_of_one_token(batch) for batch in stored["soft_targets"]]
    monkeypatch.setattr(Cache, "record_batches", lambda self, kind, split: iter(stored[kind]))
    found = evaluated(make_student(), cache)
    of_blocks = [name for name in found if name.startswith(("perplexity", "teacher_", "kl_", "top", "calibration"))]
    assert len(of_blocks) == 15
    assert {name: found[name] for name in of_blocks if found[name] is not None} == {}
    assert found["selection_accuracy"] is not None
    assert "Next token" not in render(found)
    logged = evaluate_model(make_student(), cache, max_blocks=2)
    assert {logged[name] for name in ("perplexity", "kl_nats", "num_targets")} == {None}


def test_without_heads_there_is_neither_agreement_nor_the_teachers_calibration(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], evaluated: Callable[..., Any]
) -> None:
    found = evaluated(
        make_student(),
        make_cache(kinds=("soft_targets",), soft_targets=SoftTargetsConfig(top_k=0, tail_weight=0.9)),
    )
    assert found["top5_agreement"] is found["top1_agreement_interval"] is found["top5_agreement_interval"] is None
    assert found["calibration"]["teacher"] is None
    assert found["calibration"]["student"]["expected_calibration_error"] > 0


def test_fewer_tokens_than_five(make_student: Callable[..., Any]) -> None:
    """A vocabulary of three: the five most probable tokens are all of them."""
    targets = SparseTargets(
        head_ids=torch.tensor([[0, 2], [1, 2]]),
        head_logprobs=torch.tensor([[0.6, 0.4], [0.3, 0.7]]).log(),
        is_head=torch.ones(2, 2, dtype=torch.bool),
        tail_logprob=torch.full((2,), -torch.inf),
        tail_ids=torch.zeros(2, 0, dtype=torch.int64),
        is_drawn=torch.zeros(2, 0, dtype=torch.bool),
        tail_weight=None,
        tempered_tail_logmass=None,
        label_ids=torch.tensor([0, 0]),
    )
    ids = torch.tensor([[0, 1]])
    batch = BlockBatch(
        input_ids=ids, position_ids=ids, is_valid=ids >= 0, targets=targets,
        entropy=torch.zeros(2), label_logprob=torch.zeros(2),
    )  # fmt: skip
    found = measure_positions(make_student(vocab_size=3), batch, 5)
    assert found.hits.shape == (2, 3)
    assert found.hits.sum(1).tolist() == [1, 1]
    assert found.teacher_is_right.tolist() == [1.0, 0.0]
    assert found.teacher_confidence.tolist() == pytest.approx([0.6, 0.7])


def full_kl(teacher: Any, student: Any, cache: Cache) -> float:
    values = []
    for row in validation_rows(cache):
        for (_, _, p), (_, _, q) in zip(predictions(teacher, row), predictions(student, row), strict=True):
            values.append((np.exp(p) * (p - q)).sum())
    return float(np.mean(values))


def test_a_head_of_the_whole_vocabulary_gives_the_full_divergence(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], teacher_dir: Path
) -> None:
    settings = SoftTargetsConfig(top_k=257, tail_weight=None, mantissa_bits=10)
    cache, model = make_cache(kinds=("soft_targets",), soft_targets=settings, max_tokens=2500), make_student()
    teacher = GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    found = evaluate_model(model, cache)
    assert found["kl_nats"] == pytest.approx(full_kl(teacher, model, cache), rel=1e-3)
    expected = naive_measures(model, cache, tail_weight=None)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_sampled_tail_estimates_and_the_bucketed_one_bounds_the_full_divergence(
    cache: Cache, bucketed_cache: Cache, make_student: Callable[..., Any], teacher_dir: Path
) -> None:
    model, teacher = make_student(), GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    truth = full_kl(teacher, model, cache)
    sampled, bucketed = evaluate_model(model, cache), evaluate_model(model, bucketed_cache)
    assert abs(sampled["kl_nats"] - truth) < 4 * sampled["kl_standard_error"] + 0.01
    assert bucketed["kl_nats"] < truth


@pytest.mark.parametrize("kind", ["sampled", "bucketed"])
def test_the_teacher_itself_as_a_student_is_perfect(
    request: pytest.FixtureRequest, teacher_dir: Path, kind: str
) -> None:
    cache: Cache = request.getfixturevalue("cache" if kind == "sampled" else "bucketed_cache")
    found = evaluate(EvaluateConfig(student=teacher_dir, cache=cache.path, device="cpu", quiet=True))
    if kind == "sampled":
        assert abs(found["kl_nats"]) < 4 * found["kl_standard_error"]
        assert found["kl_standard_error"] < 0.02
    else:
        assert 0 <= found["kl_nats"] < 1e-4
    assert found["perplexity"] == pytest.approx(found["teacher_perplexity"], rel=1e-3)
    assert found["teacher_perplexity"] == pytest.approx(cache.manifest.teacher_perplexity("validation"), rel=1e-6)
    assert found["top1_agreement"] > 0.999
    assert found["selection_accuracy"] == 1.0
    assert found["selection_chance"] == pytest.approx(0.25)
    assert found["num_selections"] == 4


def test_the_standard_error_covers_positions_that_share_a_block() -> None:
    rng, num_trials, truth = np.random.default_rng(0), 1000, 2.0
    errors = []
    for _ in range(num_trials):
        counts = rng.integers(5, 100, 60)
        shared = rng.normal(truth, 1, 60)
        sums = np.array([rng.normal(mean, 1, count).sum() for mean, count in zip(shared, counts, strict=True)])
        mean, error = ratio_with_error(torch.from_numpy(sums), torch.from_numpy(counts).double())
        assert error is not None
        errors.append((mean - truth) / error)
    # A share of 0.95 within 1.96 errors has a standard deviation of 0.007; counting positions as draws gives 0.2.
    assert 0.91 < np.mean(np.abs(errors) < 1.96) < 0.98
    assert ratio_with_error(torch.tensor([3.0]), torch.tensor([2.0])) == (1.5, None)


def test_selection_equals_the_naive_choice(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], helpers: ModuleType
) -> None:
    beams = helpers.BeamsConfig(num_prompts=60, num_beams=3, num_candidates=3, prompt_tokens=4, max_new_tokens=4)
    cache, model = make_cache(kinds=("beams",), beams=beams, validation_fraction=0.4, max_tokens=None), make_student()
    num_right, chances = 0, []
    rows = validation_rows(cache, "beams")
    for row in rows:
        ids, scores = iter(row["candidate_ids"]), []
        for length in row["candidate_lengths"]:
            prompt, candidate = row["prompt_ids"], [next(ids) for _ in range(length)]
            with torch.inference_mode():
                logprobs = torch.log_softmax(model(torch.tensor([prompt + candidate])).logits[0].double(), 1)
            scores.append(sum(float(logprobs[len(prompt) - 1 + i, t]) for i, t in enumerate(candidate)) / length)
        if len(scores) > 1:
            num_right += scores.index(max(scores)) == 0
            chances.append(1 / len(scores))
    found = evaluate_model(model, cache)
    assert found["num_selections"] == len(chances) > 15
    assert found["selection_accuracy"] == num_right / len(chances)
    assert 0 < num_right < len(chances)
    assert found["selection_chance"] == pytest.approx(np.mean(chances))


def test_a_tail_drawn_at_another_temperature_gives_a_lower_bound(
    make_cache: Callable[..., Cache], teacher_dir: Path, make_student: Callable[..., Any]
) -> None:
    settings = SoftTargetsConfig(top_k=4, tail_weight=0.05, temperatures=(2.0,))
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings, max_tokens=2500)
    teacher = GPT2LMHeadModel.from_pretrained(teacher_dir).eval()
    found = evaluate_model(teacher, cache)
    assert found["kl_is_lower_bound"]
    assert 0 <= found["kl_nats"] < 1e-4
    model = make_student()
    assert evaluate_model(model, cache)["kl_nats"] == pytest.approx(
        naive_measures(model, cache, tail_weight=None)["kl_nats"], rel=1e-4
    )


def test_a_cache_without_heads_measures_everything_but_agreement(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any]
) -> None:
    settings = SoftTargetsConfig(top_k=0, tail_weight=0.9)
    cache = make_cache(kinds=("soft_targets",), soft_targets=settings, max_tokens=2500)
    found = evaluate_model(make_student(), cache)
    num_heads = sum(size > 0 for row in validation_rows(cache) for size in row["head_size"])
    assert num_heads == 0
    assert found["top1_agreement"] is None
    assert math.isfinite(found["kl_nats"])


def test_measures_without_rows_are_none(make_cache: Callable[..., Cache], make_student: Callable[..., Any]) -> None:
    model = make_student()
    nothing = evaluate_model(model, make_cache(kinds=("samples",), max_tokens=2500))
    assert {name for name, value in nothing.items() if value is not None} == {"num_parameters", "num_selections"}
    assert nothing["num_selections"] == 0
    only_blocks = evaluate_model(model, make_cache(kinds=("soft_targets",), max_tokens=2500))
    assert only_blocks["kl_nats"] is not None
    assert only_blocks["selection_accuracy"] is None


def test_a_tokenizer_that_gives_ids_another_meaning_is_refused(
    cache: Cache, make_student: Callable[..., Any], tmp_path: Path
) -> None:
    saved = tmp_path / "student"
    make_student().save_pretrained(saved)
    config = EvaluateConfig(student=saved, cache=cache.path, num_prompts=0, quiet=True)
    evaluate(config)  # without a tokenizer nothing can be said
    shutil.copytree(cache.tokenizer_dir, saved, dirs_exist_ok=True)
    evaluate(config)
    path = saved / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerMismatchError) as caught:
        evaluate(config)
    assert caught.value.token_id == min(vocab["a"], vocab["b"])
    assert {caught.value.token, caught.value.cached_token} == {"a", "b"}
    with pytest.raises(TokenizerMismatchError):
        build_student(str(saved), cache, seed=0)
    export = ExportConfig(student=saved, out=tmp_path / "out", format="safetensors", cache=cache.path, quiet=True)
    with pytest.raises(TokenizerMismatchError):
        export_student(export)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_student_of_other_rows_is_told_of(
    cache: Cache, make_student: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], is_own: bool
) -> None:
    saved = tmp_path / "student"
    make_student().save_pretrained(saved)
    (saved / "run.json").write_text(json.dumps({"cache_sha256": cache.rows_sha256 if is_own else "1" * 64}))
    evaluate(EvaluateConfig(student=saved, cache=cache.path, num_prompts=0))
    assert ("trained on other rows than this cache's" in capsys.readouterr().err) is not is_own


def test_what_cannot_be_evaluated(
    cache: Cache, teacher_dir: Path, make_student: Callable[..., Any], tmp_path: Path
) -> None:
    make_student(vocab_size=300).save_pretrained(tmp_path / "other")
    with pytest.raises(NoSuchStudentError):
        evaluate(EvaluateConfig(student=tmp_path / "nothing", cache=cache.path, quiet=True))
    with pytest.raises(VocabularyMismatchError):
        evaluate(EvaluateConfig(student=tmp_path / "other", cache=cache.path, quiet=True))
    with pytest.raises(NoCacheError):
        evaluate(EvaluateConfig(student=teacher_dir, cache=tmp_path / "nothing", quiet=True))
