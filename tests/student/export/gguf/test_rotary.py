"""GGUF exports of Llama-, Mistral- and Qwen2-shaped students, run by llama.cpp and by the forward pass in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

from student.errors import DisagreementError, NotExportableError
from student.export.command import export_student
from student.export.config import TOLERANCES_NATS, ExportConfig
from student.export.gguf import llama
from student.export.gguf.file import check_gguf, check_lengths, write_gguf
from student.export.gguf.llama import permuted
from tests.student.export.comparing import NO_BOS, TEXT, assert_steps_equal_a_whole, kl_nats, open_gguf, student_logits
from tests.student.export.gguf.conftest import make_model, make_tokenizer

Export = Callable[..., Path]


@pytest.fixture
def config_of(rotary_students: dict[str, Path], tmp_path: Path) -> Callable[..., ExportConfig]:
    """A whole export of one of the students, compared on a short text."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 8, encoding="utf-8")

    def make(shape: str, **changes: Any) -> ExportConfig:
        settings: dict[str, Any] = {"out": tmp_path / "out.gguf", "format": "gguf", "text": text, "max_tokens": 300}
        return ExportConfig(student=rotary_students[shape], quiet=True, **(settings | changes))

    return make


@pytest.mark.parametrize("reader", ["numpy", "llama.cpp"])
@pytest.mark.parametrize("quantize", ["none", "q8_0"])
def test_logits_are_the_students(
    rotary_student: Path, exported: Export, reader: str, quantize: str, ids: list[int]
) -> None:
    opened = open_gguf(reader, exported(rotary_student, "gguf", quantize))
    for num_ids in (1, 2, 40):
        opened.reset()
        expected = student_logits(rotary_student, ids[:num_ids])
        assert kl_nats(expected, opened.read(ids[:num_ids])) < TOLERANCES_NATS["gguf", quantize]
    assert_steps_equal_a_whole(opened, ids, 0.02 if reader == "llama.cpp" else 1e-4)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "mistral"])
def test_a_whole_export_is_kept(config_of: Callable[..., ExportConfig], shape: str) -> None:
    config = config_of(shape, quantize="q8_0")
    trial = export_student(config)
    assert config.out.is_file()
    assert trial.agreement.num_targets > 200
    assert trial.agreement.kl_nats < trial.tolerance_nats


@pytest.mark.parametrize("damage", ["kept", "too few heads", "halves"])
def test_another_order_in_the_heads_is_noticed(
    config_of: Callable[..., ExportConfig], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Queries and keys as transformers has them; turned as if there were fewer heads; turned the other way round."""
    orders: dict[str, Callable[..., Any]] = {
        "kept": lambda weight, num_heads: weight,
        "too few heads": lambda weight, num_heads: permuted(weight, num_heads // 2),
        "halves": lambda weight, num_heads: (
            weight.reshape(num_heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        ),
    }
    monkeypatch.setattr(llama, "permuted", orders[damage])
    config = config_of("llama")
    with pytest.raises(DisagreementError, match=r"out\.gguf: not kept"):
        export_student(config)
    assert not config.out.exists()


def test_rows_that_turn_together_become_neighbours() -> None:
    weight = np.arange(12, dtype=np.float32)
    assert permuted(weight, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    columns = np.stack([weight, -weight], axis=1)
    np.testing.assert_array_equal(permuted(columns, 2)[:, 1], -permuted(weight, 2))


def test_the_file_says_what_llama_cpps_converter_would(rotary_students: dict[str, Path], exported: Export) -> None:
    def fields(shape: str, *keys: str) -> list[Any]:
        found = [GGUFReader(exported(rotary_students[shape], "gguf", "q8_0")).get_field(key) for key in keys]
        return [field and field.contents() for field in found]

    sizes = ("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length")
    assert fields("llama", "general.architecture", *(f"llama.{size}" for size in sizes)) == ["llama", 4, 2, 16, 16]
    assert fields("mistral", "general.architecture", *(f"llama.{size}" for size in sizes)) == ["llama", 4, 2, 24, 24]
    assert fields("qwen2", "general.architecture", *(f"qwen2.{size}" for size in sizes)) == ["qwen2", 4, 2, 8, 8]
    assert fields("llama", "llama.rope.dimension_count", "llama.block_count", "llama.feed_forward_length") == [
        16,
        2,
        64,
    ]
    assert fields("llama", "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base") == pytest.approx(
        [1e-3, 1e4]
    )
    assert fields("llama", "llama.rope.scaling.type", "llama.context_length") == [None, 64]
    assert fields("linear", "llama.rope.scaling.type", "llama.rope.scaling.factor") == ["linear", 2.5]
    assert fields("llama3", "llama.rope.scaling.type", "llama.rope.freq_base") == [None, 500.0]


def test_weights_of_every_kind_are_stored(rotary_students: dict[str, Path], exported: Export) -> None:
    def stored(shape: str) -> dict[str, GGMLQuantizationType]:
        file = GGUFReader(exported(rotary_students[shape], "gguf", "q8_0"))
        return {tensor.name: tensor.tensor_type for tensor in file.tensors}

    f32, f16, q8_0 = (GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0"))
    assert stored("llama")["output.weight"] == stored("llama")["blk.1.attn_k.weight"] == q8_0
    assert stored("linear")["blk.1.attn_k.weight"] == f16  # 40 wide, which 32 does not divide
    assert "output.weight" not in stored("llama3") | stored("qwen2")
    assert stored("llama3")["rope_freqs.weight"] == stored("llama")["blk.0.attn_norm.weight"] == f32
    biases = [f"blk.1.{part}.bias" for part in ("attn_q", "attn_k", "attn_v")]
    assert [stored("qwen2")[name] for name in biases] == [f32] * 3
    assert {*biases, "blk.0.attn_output.bias", "blk.0.ffn_down.bias", "blk.1.ffn_gate.bias"} <= stored("biased").keys()


def test_factors_of_the_rotary_embedding_are_llama_3s(rotary_students: dict[str, Path], exported: Export) -> None:
    """Llama 3.1's formula in float64, from the settings of SHAPES: 500^(-i/4) radians a token, slowed by up to 4."""
    expected = []
    for i in range(4):
        wavelength = 2 * np.pi * 500.0 ** (i / 4)
        smooth = float(np.clip((32 / wavelength - 1.0) / (4.0 - 1.0), 0, 1))
        expected.append(1 / ((1 - smooth) / 4.0 + smooth))
    (found,) = (
        tensor.data
        for tensor in GGUFReader(exported(rotary_students["llama3"], "gguf")).tensors
        if tensor.name == "rope_freqs.weight"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected[0] == 1
    assert 1 < expected[1] < 4 == expected[3]


@pytest.mark.parametrize(
    ("shape", "changes", "problem"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu', llama.cpp's llama has 'silu' alone"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary embedding by 'dynamic', expected one of default, linear, llama3",
        ),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            "rotary embedding by 'yarn', expected one of default, linear for llama.cpp's qwen2",
        ),
        ("qwen2", {"head_dim": 16}, "heads of 64 numbers in all, expected its width 32"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(shape: str, changes: dict[str, Any], problem: str) -> None:
    tokenizer = make_tokenizer("qwen2")
    with pytest.raises(NotExportableError, match=problem) as caught:
        check_gguf(make_model(shape, len(tokenizer), **changes), tokenizer, NO_BOS, "student")
    assert "\n" not in str(caught.value)


def test_weights_that_llama_cpp_has_no_place_for_are_refused() -> None:
    tokenizer = make_tokenizer("qwen2")
    model = make_model("llama", len(tokenizer))
    model.lm_head.bias = torch.nn.Parameter(torch.ones(len(tokenizer)))
    with pytest.raises(NotExportableError, match=r"llama has no place for \(lm_head\.bias\)"):
        check_gguf(model, tokenizer, NO_BOS, "student")


def test_a_window_that_llama_cpp_ignores_is_the_files_context(tmp_path: Path) -> None:
    """Up to the window the two agree; a longer held-out text is refused."""
    tokenizer = make_tokenizer("qwen2")
    model = make_model("mistral", len(tokenizer), sliding_window=16)
    with pytest.raises(NotExportableError, match=r"last 16 tokens alone, .* a held-out text has 17"):
        check_lengths(model, 17, "student")
    check_lengths(model, 16, "student")
    for unlimited in (make_model("qwen2", 300), make_model("llama", 300)):
        check_lengths(unlimited, 64, "student")
    write_gguf(model, tokenizer, NO_BOS, tmp_path / "short.gguf", "none", name="student")
    assert GGUFReader(tmp_path / "short.gguf").fields["llama.context_length"].contents() == 16


@pytest.mark.parametrize("reader", ["numpy", "llama.cpp"])
def test_a_long_text_is_read_at_once(tmp_path: Path, reader: str) -> None:
    tokenizer = make_tokenizer("qwen2")
    model = make_model("llama3", len(tokenizer), max_position_embeddings=1024)
    write_gguf(model, tokenizer, NO_BOS, tmp_path / "long.gguf", "none", name="student")
    opened = open_gguf(reader, tmp_path / "long.gguf")
    ids = [int(i) for i in np.random.default_rng(1).integers(0, 250, 600)]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    for num_ids in (5, 600, 300):
        opened.reset()
        assert kl_nats(expected[:num_ids], opened.read(ids[:num_ids])) < TOLERANCES_NATS["gguf", "none"]
