"""What a small run from text to a student's own text makes, and the values that were recorded of it.

    python -m tests.recorded_run        # writes tests/recorded_run.json again

A restructuring must leave these values as they are. Record them again only when a change of behaviour is intended.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import load_file

import student
from storage import Cache
from storage.draws import hash_uniform
from tests.conftest import make_teacher, make_text, tiny_config
from tests.precomputed import precomputed

RECORDED = Path(__file__).with_suffix(".json")
SHAPE = {
    "model_type": "gpt2", "vocab_size": 257, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2,
    "initializer_range": 0.3,
}  # fmt: skip


def run(directory: Path) -> dict[str, Any]:
    """Precompute, train eight steps and generate below `directory`; describe everything that was made."""
    torch.set_num_threads(1)
    text = directory / "documents.txt"
    text.write_text("".join(make_text(60)))
    cache = precomputed(tiny_config(make_teacher(directory / "teacher"), text, directory / "cache"))
    preset = directory / "shape.json"
    preset.write_text(json.dumps(SHAPE))
    trained = student.train(
        student.TrainConfig(
            cache=cache.path, out=directory / "student", preset=str(preset), max_steps=8, batch_blocks=4,
            batch_samples=4, batch_beams=2, dropout=0.1, mix=student.MixConfig(beams=0.25), device="cpu", quiet=True,
        )
    )  # fmt: skip
    weights = load_file(trained / "model.safetensors")
    generator = student.Generator(trained, device="cpu")
    measures = student.evaluate(
        student.EvaluateConfig(student=trained, cache=cache.path, device="cpu", quiet=True, num_prompts=4)
    )
    del measures["calibration"]  # which bin a probability falls into may hang on its last digit
    return {
        "files": sorted(str(path.relative_to(cache.path)) for path in cache.path.rglob("*") if path.is_file()),
        "plan": _plan(cache),
        "columns": {f"{kind}.{split}": _columns(cache, kind, split) for kind, split in _places(cache)},
        "weights": {name: _numbers(values) | _projection(values) for name, values in sorted(weights.items())},
        "measures": measures,
        "greedy": generator.generate("the teacher", max_new_tokens=12, temperature=0),
    }


def _places(cache: Cache) -> list[tuple[str, str]]:
    return [(kind, split) for split in ("train", "validation") for kind in cache.held_kinds(split)]


def _plan(cache: Cache) -> dict[str, Any]:
    """plan.json, without what depends on installed versions and on the processor."""
    plan: dict[str, Any] = json.loads((cache.path / "plan.json").read_bytes())
    del plan["software"], plan["record_sha256"], plan["teacher"]["weights_sha256"], plan["tokenizer"]["sha256"]
    return plan


def _projection(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A sum with random signs, which changes when values swap places."""
    signs = np.where(hash_uniform(0, np.arange(values.size)) < 0.5, -1.0, 1.0)
    return {"signed_sum": float(values.astype(np.float64).ravel() @ signs)}


def _columns(cache: Cache, kind: str, split: str) -> dict[str, Any]:
    """Each column of a kind: floats by their numbers, all else by its hash."""
    table = pa.Table.from_batches(list(cache.record_batches(kind, split)))
    return {name: _column(table.column(name).combine_chunks()) for name in table.column_names}


def _column(column: pa.Array) -> Any:
    flat = column
    while pa.types.is_nested(flat.type):
        flat = flat.flatten()
    if pa.types.is_floating(flat.type):
        return _numbers(flat.to_numpy(zero_copy_only=False))
    return hashlib.sha256(json.dumps(column.to_pylist()).encode()).hexdigest()[:16]


def _numbers(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    flat = values.astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    return {"size": flat.size, "mean": finite.mean(), "mean_square": np.square(finite).mean(), "first": flat[0]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        RECORDED.write_text(json.dumps(run(Path(made)), indent=1, sort_keys=True) + "\n")
