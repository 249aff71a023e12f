"""An exported directory of any architecture steps through a text as a whole pass does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from student.export.transformers_reader import TransformersReader
from tests.odd_models import make_model
from tests.student.export.comparing import assert_steps_equal_a_whole


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_a_cache_of_the_models_own_kind(tmp_path: Path, name: str) -> None:
    make_model(name).save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 257, 20).tolist()
    assert_steps_equal_a_whole(TransformersReader(tmp_path), ids, 1e-4)


def test_a_model_without_keys_and_values_reads_too(tmp_path: Path) -> None:
    make_model("mamba").save_pretrained(tmp_path)
    reader = TransformersReader(tmp_path)
    assert [len(reader.read(ids)) for ids in ([1, 2, 3], [4])] == [3, 1]
