from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from storage import Cache, RowStream
from storage.errors import ConfigError, MissingKindError
from storage.reading.remote_cache import LocalCopy
from storage.rows import samples, soft_targets
from student import CacheDataset, TrainConfig, train
from student.errors import MissingRowError
from student.loops.errors import UnbatchedKindError, UnservedTemperatureError
from student.training.objective import Objective
from tests.student.loops.streams import Rows, dataset_of, iteration, joined, loader_of, ranks_of, rows_of, take

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # a machine with fewer cores than workers


@pytest.fixture
def two_epochs(cache: Cache) -> list[Rows]:
    """The global batches of two epochs, as one process reads them."""
    stream = RowStream(cache, "soft_targets", "train", batch_rows=6, seed=3)
    batches = stream.batches()
    rows = [soft_targets.decode(next(batches).rows) for _ in range(-(-2 * stream.num_rows // 6))]
    return [[tuple(row) for row in decoded.input_ids[:, :-1].tolist()] for decoded in rows]


def test_the_rows_are_those_that_training_reads(
    train_config: Callable[..., TrainConfig], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, pa.RecordBatch]] = []
    original = Objective.accumulate
    monkeypatch.setattr(Objective, "accumulate", lambda self, rows: trained.append(rows) or original(self, rows))
    config = train_config(seed=5, max_steps=4)
    train(config)
    blocks = CacheDataset(cache.path, batch_rows=4, seed=5)
    texts = CacheDataset(cache.path, "samples", batch_rows=4, seed=5)
    for rows, block, text in zip(trained, blocks, texts, strict=False):
        assert rows_of(block) == [
            tuple(r) for r in soft_targets.decode(rows["soft_targets"]).input_ids[:, :-1].tolist()
        ]
        completions = [tuple(row.completion_ids.tolist()) for row in samples.decode(rows["samples"])]
        assert [tuple(x for x in labels if x != -100) for labels in text["labels"].tolist()] == completions


def test_a_label_is_the_next_token_and_targets_lie_beside_it(wanted_cache: Cache) -> None:
    rows = next(RowStream(wanted_cache, "soft_targets", "train", batch_rows=6, seed=3).batches()).rows
    decoded, batch = soft_targets.decode(rows), next(iter(dataset_of(wanted_cache)))
    heads, tails = decoded.head_size, decoded.tail_size
    assert 0 < (batch["labels"] == -100).sum() < batch["labels"].numel()
    entries, values = 0, 0
    for b, t in np.ndindex(*heads.shape):
        is_taught = decoded.positions[b, t + 1] > 0 and (decoded.is_wanted is None or decoded.is_wanted[b, t])
        assert batch["labels"][b, t] == (decoded.input_ids[b, t + 1] if is_taught else -100)
        assert batch["position_ids"][b, t] == decoded.positions[b, t]
        head, tail = heads[b, t], tails[b, t]
        assert batch["is_head"][b, t].sum() == head
        assert batch["head_ids"][b, t, :head].tolist() == decoded.ids[entries : entries + head].tolist()
        assert batch["head_logprobs"][b, t, :head].tolist() == decoded.logprobs[values : values + head].tolist()
        assert batch["tail_ids"][b, t, :tail].tolist() == decoded.ids[entries + head : entries + head + tail].tolist()
        assert batch["is_drawn"][b, t].sum() == tail
        entries, values = entries + head + tail, values + head
    assert torch.equal(batch["tail_logprob"], torch.tensor(decoded.tail_logprob.astype(np.float32)))


def test_shapes_and_dtypes_are_those_of_the_docstring(cache: Cache, bucketed_cache: Cache) -> None:
    batch = next(iter(dataset_of(cache, 1, 2)))
    assert {name: (value.dim(), value.dtype) for name, value in batch.items()} == {
        "input_ids": (2, torch.int64), "position_ids": (2, torch.int64), "labels": (2, torch.int64),
        "head_ids": (3, torch.int32), "head_logprobs": (3, torch.float32), "is_head": (3, torch.bool),
        "tail_logprob": (2, torch.float32), "entropy": (2, torch.float32), "tail_weight": (1, torch.float32),
        "tail_ids": (3, torch.int32), "is_drawn": (3, torch.bool),
    }  # fmt: skip
    assert all(len(value) == 3 and value.is_contiguous() for value in batch.values())
    tempered = set(next(iter(dataset_of(cache, temperature=2.0))))
    assert tempered == set(batch) - {"tail_ids", "is_drawn", "tail_weight"} | {"tail_logmass_at_2"}
    assert set(next(iter(dataset_of(bucketed_cache)))) == set(batch) - {"tail_ids", "is_drawn", "tail_weight"}


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (1, 2), (2, 3)])
def test_global_batches_are_the_same_for_any_number_of_ranks_and_workers(
    cache: Cache, two_epochs: list[Rows], world_size: int, num_workers: int
) -> None:
    ranks = ranks_of(cache, world_size, num_epochs=2)
    assert iteration(ranks, num_workers) == iteration(ranks, num_workers) == two_epochs
    assert [len(dataset) for dataset in ranks] == [len(two_epochs)] * world_size


def test_an_epoch_holds_every_row_once(cache: Cache) -> None:
    dataset = dataset_of(cache, batch_rows=1, num_epochs=1)
    seen = Counter(row for batch in dataset for row in rows_of(batch))
    assert seen.total() == dataset.num_rows == cache.num_rows("soft_targets", "train")
    assert seen == Counter(
        tuple(row)
        for rows in cache.record_batches("soft_targets", "train")
        for row in soft_targets.decode(rows).input_ids[:, :-1].tolist()
    )


def test_without_a_number_of_epochs_there_is_no_end_and_no_length(cache: Cache, two_epochs: list[Rows]) -> None:
    dataset = dataset_of(cache)
    assert take([dataset], 2, 2 * len(two_epochs))[: len(two_epochs) - 1] == two_epochs[:-1]
    with pytest.raises(TypeError, match="without num_epochs"):
        len(loader_of(dataset, 0))


@pytest.mark.parametrize("stop", [0, 1, 5, -1])
@pytest.mark.parametrize(("world_size", "num_workers"), [(3, 0), (1, 2), (2, 3)])
def test_a_state_continues_on_other_ranks_and_workers(
    cache: Cache, two_epochs: list[Rows], stop: int, world_size: int, num_workers: int
) -> None:
    first = ranks_of(cache, 2)
    done = range(len(two_epochs))[stop]
    taken = take(first, 0, done)
    states = [dataset.state_dict() for dataset in first]
    assert states[0] == states[1] == first[0].state_after(done)
    then = ranks_of(cache, world_size, num_epochs=2)
    for dataset in then:
        dataset.load_state_dict(states[0])
    assert taken + iteration(then, num_workers) == two_epochs
    for dataset in then:
        dataset.load_state_dict(dataset.state_after(len(two_epochs) - done))
    assert iteration(then, num_workers) == []


def test_workers_that_stay_begin_where_they_are_told_later(cache: Cache, two_epochs: list[Rows]) -> None:
    dataset = dataset_of(cache, num_epochs=2)
    loader = loader_of(dataset, 2, persistent_workers=True)
    assert [rows_of(batch) for batch in loader] == two_epochs
    dataset.load_state_dict(dataset.state_after(7))
    assert [rows_of(batch) for batch in loader] == two_epochs[7:]


def test_the_stateful_loader_of_torchdata_resumes(cache: Cache, two_epochs: list[Rows]) -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    for num_workers in (0, 2):
        for stop in (1, 4, len(two_epochs)):
            loader = loaders.StatefulDataLoader(dataset_of(cache), batch_size=None, num_workers=num_workers)
            taken = [rows_of(batch) for batch in islice(loader, stop)]
            # The state of one rank's loader continues on two ranks.
            then = [
                loaders.StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
                for dataset in ranks_of(cache, 2, num_epochs=2)
            ]
            for other in then:
                other.load_state_dict(loader.state_dict())
            assert taken + list(joined(then)) == two_epochs


def test_workers_read_a_url(cache: Cache, tmp_path: Path) -> None:
    copy = LocalCopy(directory=tmp_path / "copy", max_bytes=1 << 30)
    dataset = CacheDataset(f"file://{cache.path}", batch_rows=6, seed=3, num_epochs=1, local_copy=copy)
    assert iteration([dataset], 2) == iteration([dataset_of(cache, num_epochs=1)], 0)


def test_a_process_that_is_not_forked_keeps_the_rank(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [rows_of(batch) for batch in dataset_of(cache, 1, 2, num_epochs=1)]
    dataset = dataset_of(cache, num_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: True)
        patch.setattr(dist, "get_rank", lambda: 1)
        patch.setattr(dist, "get_world_size", lambda: 2)
        sent = pickle.dumps(dataset)
        assert [rows_of(batch) for batch in dataset] == expected
    assert [rows_of(batch) for batch in pickle.loads(sent)] == expected


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"kind": "beams"}, UnbatchedKindError, "kind 'beams': expected one of soft_targets, samples"),
        ({"kind": "logits"}, UnbatchedKindError, "kind 'logits': expected one of soft_targets, samples"),
        ({"split": "test"}, MissingKindError, "holds no soft_targets rows in the test split"),
        ({"batch_rows": 0}, ConfigError, "batch_rows is 0, expected at least 1"),
        ({"rank": 1}, ConfigError, "rank and world_size belong together"),
        ({"temperature": 3.0}, UnservedTemperatureError, "temperature is 3, this cache serves 1, 2"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    cache: Cache, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        dataset_of(cache, **changes)
    assert said in str(caught.value)


def test_a_rank_without_rows_is_refused(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="batch_rows is 2, expected at least 1 for each of 3 ranks"):
        next(iter(dataset_of(cache, 0, 3, batch_rows=2)))


def test_a_token_without_a_row_of_the_student_is_named(cache: Cache) -> None:
    with pytest.raises(MissingRowError, match="has 100 rows"):
        next(iter(dataset_of(cache, num_vocabulary_rows=100)))
