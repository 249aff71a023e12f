"""A plan from a sample says what the exact plan says, within its intervals, and what it did not read."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import PrecomputeConfig
from pipeline.estimate import render_plan
from pipeline.run import plan_only
from pipeline.sampled_plan import plan_from_sample
from storage import Cache, open_cache
from storage.errors import CacheMismatchError

INTERVAL = r"([\d,]+) \(([\d,]+) to ([\d,]+)\)"


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is large from 128 KiB on, and a sample of it has 24 windows."""
    monkeypatch.setattr("pipeline.sources.sample.sample._SMALL_BYTES", 1 << 17)
    monkeypatch.setattr("pipeline.sources.sample.sample._SMALL_DENSE_BYTES", 1 << 17)
    monkeypatch.setattr("pipeline.sources.sample.windows._MOST_STRATA", 12)
    monkeypatch.setattr("pipeline.sampled_plan._FEW_TOKENS", 1 << 10)


@pytest.fixture
def no_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading every byte for its hash takes as long as it does."""

    def refuse(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr("pipeline.sources.corpus.sha256_file", refuse)


@pytest.fixture(scope="module")
def large(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    documents = helpers.make_text(2000, seed=1)
    (directory / "a.txt").write_text("".join(documents[:1200]))
    rows = [{"text": text, "question": text[:20]} for text in [*documents[1200:], "", "x"]]
    (directory / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def interval(line: str) -> tuple[float, float]:
    found = re.search(INTERVAL, line)
    assert found, line
    value, low, high = (float(number.replace(",", "")) for number in found.groups())
    assert low <= value <= high
    return low, high


def line_of(plan: str, name: str) -> str:
    (line,) = [line for line in plan.splitlines() if line.startswith(name)]
    return line


@pytest.mark.usefixtures("no_hashing")
def test_a_plan_from_a_sample(configure: Callable[..., PrecomputeConfig], large: Path, tmp_path: Path) -> None:
    config = configure(tmp_path / "cache", data=str(large), document_separator="\n")
    plan = plan_from_sample(config)
    assert not config.out.exists()  # type: ignore[union-attr]
    size = sum(file.stat().st_size for file in large.iterdir())
    low, high = interval(line_of(plan, "text"))
    exact = size_of(large)
    assert low <= exact <= high
    rows = interval(line_of(plan, "soft_targets"))
    assert rows[0] <= exact / 33 <= rows[1]
    assert line_of(plan, "samples").split()[1:3] == ["24", "rows"]  # as many as are asked for
    assert f"MB of {size / 1e6:,.1f} MB, in 24 places of 2 of 2 files" in line_of(plan, "read")
    assert plan.endswith("nothing was written")


def size_of(directory: Path) -> int:
    """Tokens of a byte-level tokenizer: the bytes of the texts, and the ends of those that are no single byte."""
    texts = (directory / "a.txt").read_text().split("\n")
    texts += [json.loads(line)["text"] for line in (directory / "b.jsonl").read_text().splitlines()]
    return sum(len(text) + 1 for text in texts if len(text) > 1)


def test_max_tokens_limit_what_is_planned(
    configure: Callable[..., PrecomputeConfig], large: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path / "cache", data=str(large), document_separator="\n", kinds=("soft_targets",))
    plan = plan_from_sample(dataclasses.replace(config, max_tokens=33_000))
    assert line_of(plan, "text").startswith("text          about 33,000 tokens in about")
    assert line_of(plan, "soft_targets").split()[1:4] == ["1,000", "rows", "in"]
    few = dataclasses.replace(config, max_tokens=1000)
    assert line_of(plan_from_sample(few), "train") == line_of(plan_only(few, render_plan), "train")


def test_a_small_text_gets_exact_figures(configure: Callable[..., PrecomputeConfig], tmp_path: Path) -> None:
    config = configure(tmp_path / "cache", kinds=("soft_targets",))
    plans = plan_from_sample(config), plan_only(config, render_plan)
    for name in ("train", "validation"):
        assert line_of(plans[0], name) == line_of(plans[1], name)


@pytest.mark.usefixtures("no_hashing")
def test_a_plan_for_the_place_of_another_cache_is_refused(
    configure: Callable[..., PrecomputeConfig], finished: Cache
) -> None:
    with pytest.raises(CacheMismatchError):
        plan_from_sample(configure(finished.path, seed=1))
    assert "nothing was written" in plan_from_sample(configure(finished.path))


def test_a_plan_says_what_is_made_already(
    configure: Callable[..., PrecomputeConfig], copied: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    cache = open_cache(copied)
    num_shards, num_bytes = len(cache.manifest.shards), sum(shard.shard_bytes for shard in cache.manifest.shards)
    lost = cache.manifest.shards[-1]
    (copied / lost.path).unlink()
    before = snapshot(copied)
    config = configure(copied)
    for plan in (plan_from_sample(config), plan_only(config, lambda job: "the plan")):
        assert f"holds {num_shards - 1} of {num_shards} shards, {(num_bytes - lost.shard_bytes) / 1e6:,.1f} MB" in plan
    assert snapshot(copied) == before


def test_conversations_and_prompts_of_a_column(
    helpers: ModuleType, configure: Callable[..., PrecomputeConfig], tmp_path: Path
) -> None:
    texts = helpers.make_text(1600, seed=2)
    rows = [{"p": text[:30], "c": text[30:] or "?"} for text in texts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configure(
        tmp_path / "cache", data=str(tmp_path / "pairs.jsonl"), document_separator=None,
        prompt_column="p", completion_column="c", kinds=("soft_targets", "beams"),
    )  # fmt: skip
    plan, exact = plan_from_sample(config), plan_only(config, render_plan)
    low, high = interval(line_of(plan, "text"))
    counts = [int(line_of(exact, name).split()[1].replace(",", "")) for name in ("train", "validation")]
    assert low <= sum(counts) <= high
    assert "tokens wanted" in line_of(plan, "text")
    assert line_of(plan, "beams").split()[1:3] == line_of(exact, "beams").split()[1:3]
