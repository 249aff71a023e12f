"""A sample of a hub data set is the first rows of some of its files."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import numpy as np
import pytest

from pipeline.config import PrecomputeConfig
from pipeline.errors import ColumnError, NoSampleError
from pipeline.sources.corpus import open_corpus
from pipeline.sources.sample.fragments import Sample
from pipeline.sources.sample.ratio import ratio_total
from pipeline.sources.sample.sample import take_sample

NUM_ROWS = 9000


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sample | None]:
    """Takes a sample of rows of 1 to 60 characters on a hub that says how many there are."""
    monkeypatch.setattr("pipeline.sources.corpus._hub_commit", lambda *_: "0" * 40)

    def sample(num_files: int, *, num_examples: int | None = NUM_ROWS, column: str = "text") -> Sample | None:
        lengths = np.random.default_rng(0).integers(1, 60, NUM_ROWS)
        rows = datasets.Dataset.from_dict({"text": ["x" * int(n) for n in lengths], "other": lengths})
        stream = rows.to_iterable_dataset(num_shards=num_files)
        if num_examples is not None:
            stream.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=num_examples)})
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
        config = PrecomputeConfig(teacher="", data="some/rows", out="", text_column=column, kinds=("soft_targets",))
        return take_sample(config, open_corpus(config))

    return sample


@pytest.mark.parametrize(("num_files", "num_read"), [(1, 1), (3, 3), (4, 4), (40, 32)])
def test_first_rows_of_some_files(sampled: Callable[..., Sample | None], num_files: int, num_read: int) -> None:
    sample = sampled(num_files)
    assert sample is not None
    assert (sample.unit, sample.size, sample.num_read_files) == ("rows", NUM_ROWS, num_read)
    assert sample.read_size == sum(len(reading.fragments) for (reading,) in sample.readings)
    assert sample.beginnings == ["some/rows"]
    chars = [
        sum(len("".join(fragment.document.pieces)) for fragment in reading.fragments) for (reading,) in sample.readings
    ]
    num_rows = [reading.num_bytes for (reading,) in sample.readings]
    found = ratio_total(sample.windows, chars, num_rows, sample.size)
    assert abs(found.value - int(np.random.default_rng(0).integers(1, 60, NUM_ROWS).sum())) < 1.6 * found.above


def test_a_small_data_set_is_read_whole(sampled: Callable[..., Sample | None]) -> None:
    assert sampled(1, num_examples=4000) is None


def test_a_data_set_of_unknown_size(sampled: Callable[..., Sample | None]) -> None:
    with pytest.raises(NoSampleError, match=r"--data some/rows: the hub does not say how many rows"):
        sampled(1, num_examples=None)


def test_a_column_that_the_data_set_lacks(sampled: Callable[..., Sample | None]) -> None:
    with pytest.raises(ColumnError, match=r"column 'body': not among \['other', 'text'\]"):
        sampled(4, column="body")
