"""ONNX exports compute what the student does, at any batch, length and past, in the layout that others load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from storage.tensors.model_facts import num_parameters
from student.errors import NotExportableError
from student.export.config import TOLERANCES_NATS
from student.export.onnx import graph
from student.export.onnx.int8 import quantize_rows
from student.export.onnx.reader import OnnxReader
from student.export.readers import onnx_file
from student.model.loading import load_student
from tests import odd_models
from tests.heads import make_model
from tests.student.export.comparing import assert_steps_equal_a_whole, kl_nats

Export = Callable[..., Path]


def run(path: Path, ids: NDArray[np.int64], past: list[NDArray[np.float32]], mask: NDArray[np.int64]) -> list[Any]:
    """One call of the graph, positions counted where the mask is set."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions} | dict(zip(names, past, strict=True))
    found: list[Any] = session.run(None, inputs)
    return found


def no_past(path: Path, num_sequences: int) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = [i.shape for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    return [np.zeros((num_sequences, shape[1], 0, shape[3]), dtype=np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("num_sequences", "num_past", "num_new"), [(1, 0, 1), (2, 0, 7), (1, 9, 1), (3, 5, 4), (1, 40, 24)]
)
def test_logits_are_the_students_at_every_shape(
    student_dir: Path, exported: Export, num_sequences: int, num_past: int, num_new: int
) -> None:
    path = onnx_file(exported(student_dir, "onnx"))
    ids = np.random.default_rng(1).integers(0, 250, (num_sequences, num_past + num_new))
    with torch.inference_mode():
        expected = load_student(student_dir).eval()(input_ids=torch.from_numpy(ids)).logits.numpy()
    past = no_past(path, num_sequences)
    if num_past:
        seen, *past = run(path, ids[:, :num_past], past, np.ones((num_sequences, num_past), dtype=np.int64))
        np.testing.assert_allclose(seen, expected[:, :num_past], atol=2e-5)
    found, *_ = run(path, ids[:, num_past:], past, np.ones_like(ids))
    np.testing.assert_allclose(found, expected[:, num_past:], atol=2e-5)


def test_padding_on_the_left_changes_nothing(odd_student: Path, exported: Export) -> None:
    path = onnx_file(exported(odd_student, "onnx"))
    ids = np.random.default_rng(2).integers(0, 250, (2, 9))
    mask = np.ones_like(ids)
    mask[1, :4] = 0
    padded, *_ = run(path, ids, no_past(path, 2), mask)
    alone, *_ = run(path, ids[1:, 4:], no_past(path, 1), np.ones((1, 5), dtype=np.int64))
    np.testing.assert_allclose(padded[1, 4:], alone[0], atol=2e-5)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_key_value_cache_steps_through_what_a_whole_pass_sees(
    student_dir: Path, exported: Export, quantize: str, ids: list[int]
) -> None:
    # int8 quantises the activations of a call together, so that a piece alone is rounded otherwise than in a whole.
    tolerance = 2e-5 if quantize == "none" else 0.6
    assert_steps_equal_a_whole(OnnxReader(onnx_file(exported(student_dir, "onnx", quantize))), ids, tolerance)


def test_int8_stays_near_the_student(student_dir: Path, exported: Export, ids: list[int]) -> None:
    plain, small = (OnnxReader(onnx_file(exported(student_dir, "onnx", q))) for q in ("none", "int8"))
    assert kl_nats(plain.read(ids), small.read(ids)) < TOLERANCES_NATS["onnx", "int8"]


def test_names_and_axes_are_those_that_others_look_for(odd_student: Path, exported: Export) -> None:
    directory = exported(odd_student, "onnx")
    graph = onnx.load(onnx_file(directory)).graph
    axes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    text, heads = ["batch_size", "sequence_length"], ["batch_size", 3]
    assert [v.name for v in graph.input][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert axes["input_ids"] == axes["position_ids"] == text
    assert axes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert axes["logits"] == [*text, 263]
    for layer in (0, 1):
        for part in ("key", "value"):
            assert axes[f"past_key_values.{layer}.{part}"] == [*heads, "past_sequence_length", 8]
            assert axes[f"present.{layer}.{part}"] == [*heads, "total_sequence_length", 8]
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "onnx"} <= names
    assert [path.name for path in (directory / "onnx").iterdir()] == ["model.onnx"]
    assert [path.name for path in (exported(odd_student, "onnx", "int8") / "onnx").iterdir()] == [
        "model_quantized.onnx"
    ]


def test_every_weight_is_stored_once(student_dir: Path, exported: Export) -> None:
    model = load_student(student_dir)
    graph = onnx.load(onnx_file(exported(student_dir, "onnx"))).graph
    stored = sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert stored <= num_parameters(model) + 8
    small = onnx.load(onnx_file(exported(student_dir, "onnx", "int8"))).graph
    is_float = [t for t in small.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(t.dims)) for t in is_float) == model.config.vocab_size  # scales of rows
    num_bytes = sum(int(np.prod(t.dims)) for t in small.initializer if t.data_type == onnx.TensorProto.UINT8)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert matrices <= num_bytes <= 1.1 * matrices


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_session_loads_without_a_warning(
    student_dir: Path, exported: Export, quantize: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = onnx_file(exported(student_dir, "onnx", quantize))
    capfd.readouterr()
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""
    graph = onnx.load(path).graph
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_nothing_of_where_it_was_made_is_in_the_file(odd_student: Path, exported: Export) -> None:
    content = onnx_file(exported(odd_student, "onnx")).read_bytes()
    assert str(Path(graph.__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


def test_rows_are_rounded_to_the_nearest_of_255_steps() -> None:
    table = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    table[3] = 0.0
    rows, scale = quantize_rows(table)
    back = scale[:, None].astype(np.float64) * (rows.astype(np.float64) - 128)
    assert np.all(np.abs(back - table) <= scale[:, None] * 0.5001)
    assert np.all(np.abs(rows[:3].astype(int) - 128).max(axis=1) == 127)
    assert not back[3].any()


def test_other_architectures_keep_their_own_heads(tmp_path: Path, ids: list[int]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=251, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    graph.write_onnx(model, "llama", tmp_path / "model.onnx")
    reader = OnnxReader(tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(reader.read(ids), expected, atol=5e-5)
    assert_steps_equal_a_whole(reader, ids, 5e-5)


@pytest.mark.parametrize("model_type", ["gemma2", "phi"])
def test_a_cap_and_a_bias_are_in_the_graph(tmp_path: Path, ids: list[int], model_type: str) -> None:
    model = make_model(model_type, 251, head_size=0.5)
    model.set_attn_implementation("eager")
    graph.write_onnx(model, model_type, tmp_path / "model.onnx")
    reader = OnnxReader(tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(reader.read(ids), expected, atol=5e-5 * np.abs(expected).max())
    assert_steps_equal_a_whole(reader, ids, 5e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mamba", {}, "without keys and values of their own"),
        ("lfm2", {}, "without keys and values of their own"),
        ("phi3", {}, "more than 16 tokens with other positions"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "see 4 tokens of its 64"),
    ],
)
def test_layers_that_do_not_see_all_keys_and_values_are_refused(
    tmp_path: Path, name: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(NotExportableError, match=f"{words}.*; export it as safetensors"):
        graph.write_onnx(odd_models.make_model(name, **changes), name, tmp_path / "onnx" / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_student_beyond_one_file_is_refused(
    odd_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "_MOST_BYTES", 10_000)
    with pytest.raises(NotExportableError, match="2 GiB"):
        graph.write_onnx(load_student(odd_student), "student", tmp_path / "onnx" / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_student_that_the_exporter_cannot_express_is_refused(
    odd_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("too many values to unpack\n(expected 2)")

    monkeypatch.setattr(graph, "DynamicCache", fail)
    with pytest.raises(NotExportableError, match=r"exporter \(too many .* unpack\); export it as safetensors$"):
        graph.write_onnx(load_student(odd_student), "student", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
