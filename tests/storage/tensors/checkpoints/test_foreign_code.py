"""Code beside a model or tokenizer never runs and is never asked about, whatever stands on standard input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from storage import Cache
from tests.places import ROOT
from tests.storage.tensors.checkpoints.broken_models import broken, own_code, own_tokenizer_code, pickled_code

# One process for all, because the start of one takes seconds.
_USE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.config import PrecomputeConfig
from pipeline.teacher.loading import load_teacher
from storage import open_cache
from storage.errors import TeachonceError
from student.model.loading import load_student
from student.model.presets import build_student
from student.model.tokenizers import load_tokenizer

cache = open_cache(sys.argv[1])
for model in map(Path, sys.argv[2:]):
    for use in (
        lambda: load_teacher(PrecomputeConfig(teacher=str(model), data="stdlib", out=Path("out"))),
        lambda: load_student(model),
        lambda: load_tokenizer(model),
        lambda: build_student(str(model), cache, seed=0),
        lambda: build_student(str(model / "config.json"), cache, seed=0),
    ):
        try:
            use()
            print("used")
        except TeachonceError as error:
            print("refused")
"""


def test_code_never_runs_whatever_stands_on_standard_input(teacher_dir: Path, cache: Cache, tmp_path: Path) -> None:
    models = [
        str(broken(teacher_dir, tmp_path / how.__name__, how)) for how in (own_code, own_tokenizer_code, pickled_code)
    ]
    done = subprocess.run(
        [sys.executable, "-c", _USE, str(cache.path), *models],
        cwd=tmp_path, input="yes\n" * 1000, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    # A tokenizer's code is no matter of the weights, weights are none of the tokenizer or of a config.
    assert done.stdout.split() == [
        *["refused"] * 5,
        *["refused", "used", "refused", "refused", "used"],
        *["refused", "refused", "used", "refused", "used"],
    ]
    assert not list(tmp_path.glob("*-was-run"))
