"""A plan says what a run would make and writes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import PrecomputeConfig
from pipeline.estimate import render_plan
from pipeline.job import Job
from pipeline.run import plan_only
from storage import Cache
from storage.errors import CacheMismatchError


def test_a_plan_writes_nothing(configure: Callable[..., PrecomputeConfig], finished: Cache, tmp_path: Path) -> None:
    jobs: list[Job] = []
    config = dataclasses.replace(configure(tmp_path / "cache"), plan="exact")
    text = plan_only(config, lambda job: (jobs.append(job), render_plan(job))[1])
    assert not (tmp_path / "cache").exists()
    assert "nothing was written" in text
    for kind, producer in jobs[0].producers.items():
        num_rows = sum(finished.num_rows(kind, split) for split in ("train", "validation"))
        assert sum(producer.num_rows(split) for split in ("train", "validation")) == num_rows
        num_shards = len([shard for shard in finished.manifest.shards if shard.key.kind == kind])
        assert f"{num_rows:,} rows in {num_shards} shards" in text


def test_a_plan_for_the_place_of_another_cache_is_refused(
    configure: Callable[..., PrecomputeConfig], finished: Cache
) -> None:
    assert "nothing was written" in plan_only(configure(finished.path, plan="exact"), render_plan)
    with pytest.raises(CacheMismatchError):
        plan_only(configure(finished.path, plan="exact", seed=1), render_plan)


def test_a_plan_tells_of_documents_without_text(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": "the student learns alone " * 20}, {"text": None}, {"text": ""}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configure(
        tmp_path / "cache", data=str(data), document_separator=None, kinds=("soft_targets",), plan="exact"
    )
    (line,) = [line for line in plan_only(config, render_plan).splitlines() if line.startswith("skipped")]
    assert line.split()[1:] == ["2", "documents", "without", "text"]
