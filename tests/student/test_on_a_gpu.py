"""On a GPU the teacher says, and the student learns, what they do on a CPU.

On a machine without one these tests are skipped; with DEVICE = "cpu" they compare the CPU with itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from pipeline import SoftTargetsConfig
from storage import Cache, verify_cache
from storage.rows import soft_targets
from student import EvaluateConfig, Generator, TrainConfig, evaluate
from student.losses.batches import block_batch
from student.training import learner
from student.training.trainer import train

DEVICE = "cuda"
pytestmark = pytest.mark.gpu if DEVICE == "cuda" else ()

MakeCache = Callable[..., Cache]
MakeConfig = Callable[..., TrainConfig]


def rows_of(cache: Cache, kind: str) -> pa.Table:
    return pa.Table.from_batches(cache.record_batches(kind, "train"))


@pytest.mark.parametrize("tail_weight", [0.05, None])
def test_soft_targets_are_those_of_the_cpu(make_cache: MakeCache, tail_weight: float | None) -> None:
    """Up to float32 sums in another order, which may move an id from head to tail, or a draw to its neighbour."""
    settings = SoftTargetsConfig(top_k=4, tail_weight=tail_weight)
    cpu, gpu = (
        make_cache(kinds=("soft_targets",), soft_targets=settings, device=device, dtype="float32")
        for device in ("cpu", DEVICE)
    )
    assert verify_cache(gpu.path).problems == ()
    for one, other in zip(*(cache.record_batches("soft_targets", "train") for cache in (cpu, gpu)), strict=True):
        ours, theirs = soft_targets.decode(one), soft_targets.decode(other)
        np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
        np.testing.assert_allclose(ours.entropy.astype(float), theirs.entropy.astype(float), atol=0.01)
        np.testing.assert_allclose(ours.label_logprob.astype(float), theirs.label_logprob.astype(float), atol=0.02)
        assert np.mean(ours.head_size != theirs.head_size) < 0.01
        assert np.mean(ours.tail_size != theirs.tail_size) < 0.02
    perplexity = cpu.manifest.teacher_perplexity("train")
    assert gpu.manifest.teacher_perplexity("train") == pytest.approx(perplexity, rel=1e-3)


def test_texts_and_candidates_are_those_of_the_cpu(make_cache: MakeCache) -> None:
    cpu, gpu = (make_cache(kinds=("samples", "beams"), device=device, dtype="float32") for device in ("cpu", DEVICE))
    assert verify_cache(gpu.path).problems == ()
    for kind, column in (("samples", "completion_ids"), ("beams", "candidate_ids")):
        ours, theirs = (rows_of(cache, kind).column(column).to_pylist() for cache in (cpu, gpu))
        assert len(ours) == len(theirs)
        assert np.mean([one == other for one, other in zip(ours, theirs, strict=True)]) > 0.8


def test_a_gpu_takes_bfloat16_by_itself(make_cache: MakeCache) -> None:
    cpu, gpu = (make_cache(kinds=("soft_targets",), device=device, dtype="auto") for device in ("cpu", DEVICE))
    assert gpu.identity.teacher["dtype"] == ("bfloat16" if DEVICE == "cuda" else "float32")
    assert verify_cache(gpu.path).problems == ()
    assert gpu.manifest.teacher_perplexity("train") == pytest.approx(cpu.manifest.teacher_perplexity("train"), rel=0.05)


def test_batches_lie_on_the_gpu(cache: Cache) -> None:
    rows = next(cache.record_batches("soft_targets", "train"))
    batch = block_batch(rows, tail_weight=0.05, temperature=1.0, device=torch.device(DEVICE))
    tensors = [*vars(batch).values(), *vars(batch.targets).values()]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {DEVICE}
    on_cpu = block_batch(rows, tail_weight=0.05, temperature=1.0, device=torch.device("cpu"))
    torch.testing.assert_close(batch.targets.head_logprobs.cpu(), on_cpu.targets.head_logprobs, rtol=0, atol=0)


@pytest.fixture(scope="session")
def still_preset(shape: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student without dropout, which draws other numbers on another device."""
    path = tmp_path_factory.mktemp("preset") / "still.json"
    path.write_text(json.dumps(shape | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)))
    return str(path)


def trained(train_config: MakeConfig, tmp_path: Path, device: str, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
    """The finished student, and its log."""
    changes = {"device": device, "dtype": "float32", "evaluate_every": 4} | changes
    out = train(train_config(out=tmp_path / f"student-{device}-{changes['dtype']}", **changes))
    return out, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd", "skew_kl"])
@pytest.mark.parametrize("fixture", ["cache", "bucketed_cache"])
def test_a_student_learns_what_it_learns_on_the_cpu(
    request: pytest.FixtureRequest,
    train_config: MakeConfig,
    still_preset: str,
    tmp_path: Path,
    fixture: str,
    loss: str,
) -> None:
    used: Cache = request.getfixturevalue(fixture)
    (cpu, cpu_log), (gpu, gpu_log) = (
        trained(train_config, tmp_path, device, cache=used.path, preset=still_preset, loss=loss, micro_batches=2)
        for device in ("cpu", DEVICE)
    )
    for ours, theirs in zip(cpu_log, gpu_log, strict=True):
        for name in ours.keys() & {"soft_targets_nats", "samples_nats", "beams_nats", "labels_nats", "gradient_norm"}:
            assert theirs[name] == pytest.approx(ours[name], rel=5e-3, abs=1e-3), name
        for name in ("perplexity", "kl_nats"):
            if "validation" in ours:
                assert theirs["validation"][name] == pytest.approx(ours["validation"][name], rel=5e-3, abs=1e-3), name
    weights, others = (load_file(directory / "model.safetensors") for directory in (cpu, gpu))
    for name, weight in weights.items():
        assert float((weight - others[name]).abs().mean()) < 1e-3, name


def test_bfloat16_autocast_stays_close(train_config: MakeConfig, still_preset: str, tmp_path: Path) -> None:
    _, exact = trained(train_config, tmp_path, DEVICE, preset=still_preset)
    _, rounded = trained(train_config, tmp_path, DEVICE, preset=still_preset, dtype="bfloat16")
    assert rounded[-1]["validation"]["kl_nats"] == pytest.approx(exact[-1]["validation"]["kl_nats"], rel=0.1)


def test_a_run_goes_on_from_its_checkpoint(train_config: MakeConfig, tmp_path: Path) -> None:
    short = train_config(out=tmp_path / "student", device=DEVICE, max_steps=8, checkpoint_every=3, evaluate_every=100)
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        original = learner.Learner.step

        def step(self: learner.Learner, step: int, rows: Any) -> Any:
            steps.append(step)
            if len(steps) == 6:
                raise KeyboardInterrupt
            return original(self, step, rows)

        patch.setattr(learner.Learner, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(short)
        train(short)
    assert steps == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]


def test_a_student_is_measured_and_writes_as_on_the_cpu(saved: Path, cache: Cache) -> None:
    found = [
        evaluate(EvaluateConfig(student=saved, cache=cache.path, device=device, num_prompts=4, quiet=True))
        for device in ("cpu", DEVICE)
    ]
    for name in ("perplexity", "kl_nats", "top1_agreement", "selection_accuracy"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-3, abs=1e-3), name
    texts = [
        "".join(Generator(saved, device=device).stream("a b c", max_new_tokens=8, temperature=0.0))
        for device in ("cpu", DEVICE)
    ]
    assert texts[0] == texts[1]
