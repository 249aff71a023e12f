"""From a dump of a server to a student: imported, verified, trained, evaluated, shown; what is not known is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from storage import Cache, open_cache, verify_cache
from storage.importing.config import ImportConfig
from storage.importing.run import import_cache
from storage.report.cache_page import cache_page
from storage.rows import soft_targets
from student import CacheDataset, EvaluateConfig, TrainConfig, distillation_loss_from_logits, evaluate, train
from student.config import ReportConfig
from student.evaluation.table import render
from student.model.loading import load_student
from student.report.whole import report
from tests.places import SHARED_DATA
from tests.storage.importing.dumps import MadeUpTeacher, table_row, vllm_row, write_lines, write_parquet

GPT2_TOKENIZER = SHARED_DATA / "gpt2-tokenizer"
NUM_STEPS = 40


@pytest.fixture(params=["labels known", "labels not known"])
def imported(request: pytest.FixtureRequest, helpers: ModuleType, tmp_path: Path) -> Cache:
    """Texts of 3 to 27 tokens of a teacher over bytes; the labels beside the lists, or not."""
    helpers.make_tokenizer(tmp_path / "tokenizer")
    teacher = MadeUpTeacher(257)
    texts = [teacher.text(3 + n % 25, n) for n in range(40)]
    if request.param == "labels known":
        source = write_lines(tmp_path / "dump.jsonl", [vllm_row(teacher, ids, 8) for ids in texts])
    else:
        source = write_parquet(tmp_path / "dump.parquet", [table_row(teacher, ids, 8) for ids in texts])
    source_format: Any = "topk-jsonl" if source.suffix == ".jsonl" else "topk-parquet"
    return import_cache(
        ImportConfig(
            source=source, format=source_format, tokenizer=tmp_path / "tokenizer", out=tmp_path / "cache",
            validation_fraction=0.2, quiet=True,
        )
    ).cache  # fmt: skip


def trained(cache: Cache, preset: str, out: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"max_steps": NUM_STEPS, "batch_blocks": 8, "learning_rate": 1e-2} | changes
    train(TrainConfig(cache=cache.path, out=out, preset=preset, device="cpu", quiet=True, **settings))
    return out


def test_a_student_learns_and_is_measured(imported: Cache, preset: str, tmp_path: Path) -> None:
    assert not verify_cache(imported.path).problems
    knows_labels = "label_logprob" not in imported.identity.unknown_columns
    first = trained(imported, preset, tmp_path / "first", max_steps=1)
    last = trained(imported, preset, tmp_path / "last")
    before, after = (
        evaluate(EvaluateConfig(cache=imported.path, student=s, device="cpu", quiet=True)) for s in (first, last)
    )
    assert 0 < after["kl_nats"] < 0.9 * before["kl_nats"]
    assert after["kl_is_lower_bound"]
    assert after["kl_by_entropy"] is None
    assert (after["teacher_perplexity"] is not None) == knows_labels
    assert (after["teacher_perplexity_interval"] is not None) == knows_labels
    if knows_labels:
        assert after["teacher_perplexity"] == pytest.approx(
            imported.manifest.teacher_perplexity("validation"), rel=1e-5
        )
    assert "KL by the teacher's entropy: not known" in render(after)
    assert json.loads(json.dumps(after, allow_nan=False)) == after


def test_kl_is_that_of_the_listed_ids_and_the_rest(imported: Cache, preset: str, tmp_path: Path) -> None:
    """In float64, position by position: Σ p log(p/s) over the list, and r log(r/s_T) for all other ids."""
    student = trained(imported, preset, tmp_path / "student", max_steps=2)
    found = evaluate(EvaluateConfig(cache=imported.path, student=student, device="cpu", quiet=True))
    model = load_student(student)
    total, count = 0.0, 0
    import torch

    for batch in imported.record_batches("soft_targets", "validation"):
        rows = soft_targets.decode(batch)
        ids, logprobs = iter(rows.ids.tolist()), iter(rows.logprobs.tolist())
        for r in range(len(rows)):
            input_ids = torch.tensor(rows.input_ids[r : r + 1, :-1].astype(np.int64))
            positions = torch.tensor(rows.positions[r : r + 1, :-1])
            with torch.no_grad():
                logits = model(input_ids=input_ids, position_ids=positions, use_cache=False).logits[0].double()
            log_s = torch.log_softmax(logits, dim=1).numpy()
            for t in np.flatnonzero(rows.is_valid_target[r]):
                head = [(next(ids), next(logprobs)) for _ in range(rows.head_size[r, t])]
                listed = [i for i, _ in head]
                rest = 1 - np.exp(log_s[t, listed]).sum()
                tail = float(rows.tail_logprob[r, t])
                total += sum(np.exp(p) * (p - log_s[t, i]) for i, p in head) + np.exp(tail) * (tail - np.log(rest))
                count += 1
    # Rounded to float16, head and tail add up to 1 only about; the measure scales them.
    assert found["num_targets"] == count
    assert found["kl_nats"] == pytest.approx(total / count, rel=2e-3)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd"])
def test_every_divergence_is_finite(imported: Cache, preset: str, tmp_path: Path, loss: Any) -> None:
    out = trained(imported, preset, tmp_path / "student", max_steps=3, loss=loss)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))


def test_the_pages_say_what_is_not_known(imported: Cache, preset: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    student = trained(imported, preset, tmp_path / "student", max_steps=2)
    report(ReportConfig(cache=imported.path, students=(student,), out=tmp_path / "r.html", device="cpu", quiet=True))
    content = (tmp_path / "r.html").read_text()
    assert "does not know the teacher" in content
    page = cache_page(imported, "cache").decode()
    assert "The cache does not know the teacher&#39;s entropy." in page.replace("&#x27;", "&#39;").replace("'", "&#39;")


@pytest.mark.skipif(not GPT2_TOKENIZER.is_dir(), reason="the real tokenizer is not beside the checkout")
def test_a_dump_with_the_real_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(GPT2_TOKENIZER / "tokenizer.json"))
    teacher = MadeUpTeacher(50257)
    texts = [
        tokenizer.encode("The teacher ran once and wrote down what it knew.").ids,
        *(teacher.text(8, n) for n in range(9)),
    ]
    rows = [vllm_row(teacher, ids, 5, lambda i: tokenizer.decode([i], skip_special_tokens=False)) for ids in texts]
    source = write_lines(tmp_path / "dump.jsonl", rows)
    config = ImportConfig(
        source=source,
        format="topk-jsonl",
        tokenizer=GPT2_TOKENIZER,
        out=tmp_path / "cache",
        validation_fraction=0.2,
        quiet=True,
    )
    cache = open_cache(import_cache(config).cache.path)
    assert not verify_cache(cache.path).problems
    (tmp_path / "student.json").write_text(
        json.dumps(
            {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
        )
    )
    student = trained(cache, str(tmp_path / "student.json"), tmp_path / "student", max_steps=4)
    found = evaluate(EvaluateConfig(cache=cache.path, student=student, device="cpu", quiet=True))
    assert found["num_targets"] == sum(shard.num_targets for shard in cache.shards("soft_targets", "validation"))
    assert np.isfinite(found["kl_nats"])


def test_a_loop_of_ones_own_reads_it_without_the_entropy(imported: Cache) -> None:
    batch = next(iter(CacheDataset(imported.path, batch_rows=2)))
    assert "entropy" not in batch
    logits = torch.zeros(*batch["labels"].shape, imported.identity.vocab_size)
    assert distillation_loss_from_logits(logits, batch) > 0
