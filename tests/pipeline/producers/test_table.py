"""One producer for each kind, and a further kind takes part in a run by its lines in the tables alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import pyarrow as pa
import pytest

from pipeline import PrecomputeConfig, precompute
from pipeline.config import Kind
from pipeline.corpus.blocks import Blocks
from pipeline.corpus.tokenization import TokenizedCorpus
from pipeline.estimate import render_plan
from pipeline.producers.producer import Producer
from pipeline.producers.prompts import PromptedProducer
from pipeline.producers.table import PRODUCERS
from pipeline.run import plan_only
from pipeline.teacher.model import Teacher
from storage import open_cache, verify_cache
from storage.rows.kind import RowFacts
from storage.rows.kinds import KINDS
from tests.storage.ratings import Ratings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatingsConfig:
    most_stars: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatedConfig(PrecomputeConfig):
    ratings: RatingsConfig = dataclasses.field(default_factory=RatingsConfig)


class RatingsProducer(Producer):
    """Rates the first two tokens of each block."""

    kind = "ratings"
    most_probe_rows = 4
    tokens_per_row = 2
    longest_prompt_tokens = 2

    def __init__(self, blocks: dict[str, Blocks], most_stars: int, row_schema: pa.Schema) -> None:
        self._blocks, self._most_stars, self._schema = blocks, most_stars, row_schema

    @classmethod
    def context_needed(cls, config: PrecomputeConfig, num_beginning: int) -> tuple[str, int]:
        return "--ratings", 2

    @classmethod
    def from_text(cls, teacher: Teacher, tokenized: TokenizedCorpus, config: PrecomputeConfig) -> Producer:
        assert isinstance(config, RatedConfig)
        facts = RowFacts(
            vocab_size=teacher.vocab_size,
            block_size=config.block_size,
            temperatures=(1.0,),
            settings={},
            longest_prompt_tokens=None,
        )
        return cls(tokenized.blocks, config.ratings.most_stars, Ratings().schema(facts))

    def num_rows(self, split: str) -> int:
        return len(self._blocks[split])

    def record_batches(self, split: str, start: int, stop: int, record_batch_rows: int) -> Iterator[pa.RecordBatch]:
        prompts = self._blocks[split].input_ids(start, stop)[:, :2].tolist()
        ratings = [row % (self._most_stars + 1) for row in range(start, stop)]
        columns = {"row_id": list(range(start, stop)), "prompt_ids": prompts, "rating": ratings}
        yield from pa.table(columns, schema=self._schema).to_batches(max_chunksize=record_batch_rows)


def test_the_tables_of_kinds_agree() -> None:
    assert tuple(PRODUCERS) == tuple(KINDS) == get_args(Kind)
    assert {kind for kind, producer in PRODUCERS.items() if issubclass(producer, PromptedProducer)} == {
        name for name, kind in KINDS.items() if kind.has_prompts
    }


def test_every_prompted_kind_has_settings_of_its_prompts(tmp_path: Path) -> None:
    config = PrecomputeConfig(teacher="", data="", out=tmp_path)
    assert [name for name, kind in KINDS.items() if kind.has_prompts] == list(config.prompt_settings)
    for kind, settings in config.prompt_settings.items():
        assert settings is getattr(config, kind)


def test_a_further_kind_is_planned_made_and_verified(
    helpers: ModuleType, teacher_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "ratings", Ratings())
    monkeypatch.setitem(PRODUCERS, "ratings", RatingsProducer)
    settings = vars(helpers.tiny_config(teacher_dir, text_file, tmp_path / "cache"))
    config = RatedConfig(**(settings | {"kinds": ("samples", "ratings")}))
    assert "ratings" in plan_only(config, render_plan)
    precompute(config)
    assert verify_cache(tmp_path / "cache").problems == ()
    cache = open_cache(tmp_path / "cache")
    assert cache.held_kinds("train") == ["samples", "ratings"]
    assert cache.setting("data", "longest_prompt_tokens", "ratings") == 2
    batch = next(cache.record_batches("ratings", "train"))
    assert batch.column("rating").to_pylist() == [row % 6 for row in range(batch.num_rows)]
