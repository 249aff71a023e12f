"""The passage, the rankings and the lines to type, against plain truths."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from storage import Cache
from storage.pages import page
from storage.rows.beams import decode as decode_beams
from student import MixConfig, TrainConfig
from student.config import LoraConfig
from student.report.candidates import candidates_view, places, rank_some_prompts
from student.report.passage import heat, look_at_passage, passage_view, quoted
from student.report.reproduction import train_line
from student.report.texts import continue_some_prompts, texts_view
from tests.student.report.test_runs import make_run

HOSTILE = '</span><script>alert("x")</script>'


def token_name(before: Any, ids: Any) -> str:
    return " ".join(f"t{i}" for i in ids)


@pytest.mark.parametrize("which", ["cache", "bucketed_cache"])
def test_the_passage_is_what_the_rows_and_the_model_say(
    which: str, make_student: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    """KL over the head and the rest in float64, one document at a time."""
    held: Cache = request.getfixturevalue(which)
    model = make_student()
    passage = look_at_passage([model], held, token_name)
    assert passage is not None
    rows = next(held.record_batches("soft_targets", "validation")).to_pylist()
    pieces = [(length, -r, s) for r, row in enumerate(rows) for s, length in enumerate(row["segment_lengths"])]
    length, r, s = max(pieces, key=lambda piece: piece[:2])
    row = rows[-r]
    start = sum(row["segment_lengths"][:s])
    ids = row["input_ids"][start : start + length]
    assert [passage.first, *[token.text for token in passage.tokens]] == [f"t{i}" for i in ids]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    student = torch.softmax(logits, dim=1).numpy()
    sizes = [h + t for h, t in zip(row["head_size"], row["tail_size"], strict=True)]
    for p, token in enumerate(passage.tokens):
        t = start + p
        head_at, logprob_at = sum(sizes[:t]), sum(row["head_size"][:t])
        head = row["ids"][head_at : head_at + row["head_size"][t]]
        probs = np.exp(np.array(row["logprobs"][logprob_at : logprob_at + len(head)], dtype=np.float64))
        teacher = np.append(probs, math.exp(row["tail_logprob"][t]))
        teacher /= teacher.sum()
        coarse = np.append(student[p][head], 1 - student[p][head].sum())
        kl = sum(a * math.log(a / b) for a, b in zip(teacher, coarse, strict=True) if a > 0)
        assert token.kl_nats[0] == pytest.approx(kl, abs=1e-4)
        best = np.argsort(-probs, kind="stable")[:5]
        assert [name for name, _ in token.teacher.alternatives] == [f"t{head[b]}" for b in best]
        assert [prob for _, prob in token.teacher.alternatives] == pytest.approx(probs[best], rel=1e-3)
        assert token.teacher.probability == pytest.approx(math.exp(row["label_logprob"][t]), rel=1e-3)
        assert token.students[0].probability == pytest.approx(student[p][ids[p + 1]], rel=1e-3)
        expected = np.argsort(-student[p], kind="stable")[:5]
        assert [prob for _, prob in token.students[0].alternatives] == pytest.approx(student[p][expected], rel=1e-3)


def test_the_passage_escapes_tokens_and_names(cache: Cache, make_student: Callable[..., Any]) -> None:
    models = [make_student(seed) for seed in (0, 1)]
    passage = look_at_passage(models, cache, lambda before, ids: HOSTILE)
    assert passage is not None
    view = passage_view(passage, ["a", HOSTILE])
    assert "<script" not in view
    assert view.count("&lt;script&gt;") > len(passage.tokens)
    assert view.count("<input ") == 2
    alone = look_at_passage(models[:1], cache, token_name)
    assert alone is not None
    assert "<input " not in passage_view(alone, ["a"])


def test_every_student_that_can_be_chosen_tints(cache: Cache, make_student: Callable[..., Any]) -> None:
    sheet = (Path(page.__file__).parent / "page.css").read_text()
    passage = look_at_passage([make_student()] * 7, cache, token_name)
    assert passage is not None
    choices = re.findall(r'<input [^>]*value="(\d)"', passage_view(passage, list("abcdefg")))
    assert choices
    for student in choices:
        for level in range(1, 5):
            assert f'.passage:has(input[value="{student}"]:checked) .m{student}-{level}' in sheet


@pytest.mark.parametrize(("kl", "level"), [(-0.1, 0), (0.0, 0), (0.0999, 0), (0.1, 1), (0.4, 2), (1.99, 3), (50.0, 4)])
def test_tints(kl: float, level: int) -> None:
    assert heat(kl) == level


def test_white_space_is_seen() -> None:
    assert [quoted(text) for text in (" a", "\n\n", "\t", "")] == ["␣a", "⏎⏎", "⇥", "∅"]


def test_places_of_scores() -> None:
    assert places([-1.0, -3.0, -2.0]) == [1, 3, 2]
    assert places([-1.0, -1.0]) == [1, 2]
    assert places([]) == []


def test_candidates_are_scored_as_the_model_scores_them(cache: Cache, make_student: Callable[..., Any]) -> None:
    models = [make_student(seed) for seed in (0, 1)]
    found = rank_some_prompts(models, cache, token_name)
    stored = decode_beams(next(cache.record_batches("beams", "validation")))
    rows = {token_name((), row.prompt_ids): row for row in stored}
    assert 1 <= len(found) <= 4
    for ranked in found:
        row = rows[ranked.prompt]
        assert ranked.teacher_scores == [candidate.score for candidate in row.candidates]
        for model, scores in zip(models, ranked.student_scores, strict=True):
            for candidate, score in zip(row.candidates, scores, strict=True):
                ids = torch.tensor([[*row.prompt_ids.tolist(), *candidate.candidate_ids.tolist()]])
                with torch.inference_mode():
                    logs = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=1)
                first = len(row.prompt_ids)
                total = sum(float(logs[p - 1, ids[0, p]]) for p in range(first, ids.shape[1]))
                assert score == pytest.approx(total / len(candidate.candidate_ids), rel=1e-4)
    view = candidates_view(found, [HOSTILE, "b"])
    assert "<script" not in view
    moved = [
        (c, place) for ranked in found for scores in ranked.student_scores for c, place in enumerate(places(scores), 1)
    ]
    assert view.count('class="moved"') == sum(c != place for c, place in moved)


def test_texts_stand_beside_those_of_the_teacher(cache: Cache, make_student: Callable[..., Any]) -> None:
    found = continue_some_prompts([make_student()], cache, lambda before, ids: HOSTILE)
    cached = {row["text"] for batch in cache.record_batches("samples", "validation") for row in batch.to_pylist()}
    assert found
    assert {item.teacher for item in found} <= cached
    assert "<script" not in texts_view(found, [HOSTILE])


@pytest.mark.parametrize("kinds", [("soft_targets",), ("samples",), ("beams",)])
def test_parts_that_a_cache_has_no_rows_for(
    make_cache: Callable[..., Cache], make_student: Callable[..., Any], kinds: tuple[str, ...]
) -> None:
    held, models = make_cache(kinds=kinds), [make_student()]
    assert (look_at_passage(models, held, token_name) is not None) == (kinds == ("soft_targets",))
    assert bool(continue_some_prompts(models, held, token_name)) == (kinds == ("samples",))
    assert bool(rank_some_prompts(models, held, token_name)) == (kinds == ("beams",))


def test_the_line_to_type_is_the_run_again() -> None:
    config = TrainConfig(
        cache="a cache", out=Path("out dir"), preset="mini", max_steps=600, learning_rate=2e-3, warmup_steps=7,
        selection_temperature=None, loss="jsd", mix=MixConfig(labels=1.0, beams=0.0),
        dropout=0.1, lora=LoraConfig(rank=4, train_embeddings=True),
    )  # fmt: skip
    settings = dataclasses.asdict(config)
    for name in ("cache", "out", "device", "quiet", "local_cache_dir", "allow_incomplete"):
        del settings[name]
    run = make_run(directory=config.out, settings=settings | {"teacher": {}, "cache_sha256": "0" * 64})
    words = shlex.split(train_line(run, "a cache", has_candidates=False))
    assert words[:2] == ["teachonce-student", "train"]
    parsed = tyro.cli(TrainConfig, args=words[2:])
    assert dataclasses.replace(parsed, cache="a cache") == config


@pytest.mark.parametrize(("stated", "flags"), [(None, ["--mix.beams", "0.25"]), (0.05, ["--mix.beams", "0.05"])])
def test_the_line_of_a_run_says_the_weight_that_its_candidates_had(stated: float | None, flags: list[str]) -> None:
    """Runs of earlier versions state none, and theirs was 0.25."""
    run = make_run(settings={"mix": {"labels": None, "beams": stated}, "dropout": 0.0})
    assert shlex.split(train_line(run, "c", has_candidates=True))[5:] == flags
    assert shlex.split(train_line(run, "c", has_candidates=False))[5:] == ([] if stated is None else flags)
