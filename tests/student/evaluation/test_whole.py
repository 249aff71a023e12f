"""The whole evaluation: every figure with its interval, and what cannot be evaluated."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from student.evaluation import evaluate_model
from student.evaluation.table import render
from student.export.command import export_student
from student.export.config import ExportConfig
from student.model.presets import build_student
from tests.student.evaluation.naive import validation_rows


def test_the_whole_evaluation_holds_what_training_measures_and_intervals_around_it(
    cache: Cache, make_student: Callable[..., Any], evaluated: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_student()
    found = evaluated(model, cache)
    for name, value in evaluate_model(model, cache).items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    assert found["model_bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert found["num_blocks"] == len(validation_rows(cache))
    names = (
        "perplexity", "teacher_perplexity", "kl_nats", "top1_agreement", "top5_agreement", "kendall_tau", "acceptance",
        "tokens_per_teacher_step",
    )  # fmt: skip
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
    of_samples = {name for name in keys if name.startswith(("generation", "acceptance", "tokens_per"))}
    for kind, measured in (("soft_targets", of_blocks), ("beams", of_beams), ("samples", of_samples)):
        found = evaluated(model, make_cache(kinds=(kind,)))
        assert set(found) == keys
        counts = {"num_parameters", "model_bytes", "num_targets", "num_blocks", "num_selections", "num_sampled_tokens"}
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
    make_student(vocab_size=200).save_pretrained(tmp_path / "other")
    with pytest.raises(NoSuchStudentError):
        evaluate(EvaluateConfig(student=tmp_path / "nothing", cache=cache.path, quiet=True))
    with pytest.raises(VocabularyMismatchError):
        evaluate(EvaluateConfig(student=tmp_path / "other", cache=cache.path, quiet=True))
    with pytest.raises(NoCacheError):
        evaluate(EvaluateConfig(student=teacher_dir, cache=tmp_path / "nothing", quiet=True))
