"""JSON files of models: what transformers writes, and what is no object."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from transformers import Mamba2Config

from storage.disk.json_files import read_json_object
from storage.errors import UnusableModelError


def test_infinity_as_transformers_writes_it(tmp_path: Path) -> None:
    Mamba2Config(time_step_limit=(0.0, math.inf)).save_pretrained(tmp_path)
    assert "Infinity" in (tmp_path / "config.json").read_text()
    found = read_json_object(tmp_path / "config.json")["time_step_limit"]
    assert found == [0.0, math.inf]


@pytest.mark.parametrize("number", ["x", [], None, {}])
def test_an_infinity_that_is_none_is_one_line(tmp_path: Path, number: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"limit": {"__float__": number}}))
    with pytest.raises(UnusableModelError, match=r"config\.json cannot be read: .*float"):
        read_json_object(path)
