"""GGUF exports compute what the student does, by llama.cpp where it is installed and by a forward pass in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType, TokenType
from transformers import Qwen3Config, Qwen3ForCausalLM

from student.errors import NotExportableError
from student.export.config import TOLERANCES_NATS
from student.export.gguf.file import check_gguf, write_gguf
from student.export.gguf.forward import gelu
from student.export.gguf.reader import GgufReader
from student.model.framing import Framing
from student.model.loading import load_student
from student.model.tokenizers import load_tokenizer
from tests.student.export.comparing import NO_BOS, assert_steps_equal_a_whole, kl_nats, open_gguf, student_logits

Export = Callable[..., Path]


@pytest.mark.parametrize("reader", ["numpy", "llama.cpp"])
@pytest.mark.parametrize("quantize", ["none", "q8_0"])
def test_logits_are_the_students(
    student_dir: Path, exported: Export, reader: str, quantize: str, ids: list[int]
) -> None:
    opened = open_gguf(reader, exported(student_dir, "gguf", quantize))
    for num_ids in (1, 2, 40):
        opened.reset()
        expected = student_logits(student_dir, ids[:num_ids])
        assert kl_nats(expected, opened.read(ids[:num_ids])) < TOLERANCES_NATS["gguf", quantize]
    assert_steps_equal_a_whole(opened, ids, 0.02 if reader == "llama.cpp" else 1e-4)


def test_unquantised_logits_are_off_by_float16s_rounding_alone(
    student_dir: Path, exported: Export, ids: list[int]
) -> None:
    expected = student_logits(student_dir, ids)
    found = GgufReader(exported(student_dir, "gguf")).read(ids)
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_the_file_says_what_it_holds(students: dict[str, Path], exported: Export) -> None:
    student = students["untied"]
    file = GGUFReader(exported(student, "gguf", "q8_0"))

    def field(key: str) -> object:
        found = file.get_field(key)
        assert found is not None
        return found.contents()

    assert field("general.architecture") == "gpt2"
    assert field("general.type") == "model"
    assert field("general.name") == student.name == "student"
    assert field("general.size_label") == "73K"
    assert field("general.file_type") == LlamaFileType.MOSTLY_Q8_0
    assert field("general.quantization_version") == 2
    assert file.get_field("general.license") is None
    assert field("gpt2.feed_forward_length") == 96
    assert field("gpt2.context_length") == 64
    assert field("tokenizer.ggml.eos_token_id") == load_tokenizer(student).eos_token_id == 0
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert len(tokens) == len(types) == 307
    assert tokens[306] == "[PAD306]"
    assert types[306] == TokenType.UNUSED
    assert (tokens[0], types[0]) == ("<|endoftext|>", TokenType.CONTROL)
    merges = field("tokenizer.ggml.merges")
    assert isinstance(merges, list)
    assert len(merges) == 300 - 257
    stored = {tensor.name: tensor.tensor_type for tensor in file.tensors}
    assert stored["token_embd.weight"] == stored["output.weight"] == GGMLQuantizationType.Q8_0
    assert stored["position_embd.weight"] == stored["blk.0.attn_qkv.bias"] == GGMLQuantizationType.F32


def test_names_and_licences_are_text_alone(odd_student: Path, tmp_path: Path) -> None:
    """A stranger's cache may state anything: no control characters for a terminal, nothing that UTF-8 cannot hold."""
    path = tmp_path / "named.gguf"
    named = {"name": "ein Schüler\x1b[31m", "licences": ["mit", "cc-by-4.0", "\ud800"]}
    write_gguf(load_student(odd_student), load_tokenizer(odd_student), NO_BOS, path, "none", **named)
    fields = GGUFReader(path).fields
    assert fields["general.name"].contents() == "ein Schüler\\x1b[31m"
    assert fields["general.license"].contents() == "mit AND cc-by-4.0 AND \\ud800"


@pytest.mark.parametrize(("beginning", "ends"), [((), (0,)), ((5,), (0, 7))])
def test_a_file_says_how_texts_begin_and_end(
    odd_student: Path, tmp_path: Path, beginning: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    framing, path = Framing(beginning_ids=beginning, end_ids=ends), tmp_path / "framed.gguf"
    write_gguf(load_student(odd_student), load_tokenizer(odd_student), framing, path, "none", name="student")
    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() == bool(beginning)
    assert fields["tokenizer.ggml.bos_token_id"].contents() == (*beginning, 0)[0]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0
    assert ("tokenizer.ggml.eot_token_id" in fields) == (len(ends) > 1)


@pytest.mark.parametrize(("beginning", "ends"), [((1, 2), (0,)), ((), (0, 1, 2))])
def test_what_a_file_cannot_say_is_refused(
    odd_student: Path, beginning: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    framing = Framing(beginning_ids=beginning, end_ids=ends)
    with pytest.raises(NotExportableError, match="texts with"):
        check_gguf(load_student(odd_student), load_tokenizer(odd_student), framing, "student")


def test_rows_that_32_does_not_divide_stay_in_float16(odd_student: Path, exported: Export) -> None:
    stored = {t.name: t.tensor_type for t in GGUFReader(exported(odd_student, "gguf", "q8_0")).tensors}
    assert stored["blk.0.attn_qkv.weight"] == GGMLQuantizationType.F16  # 24 wide
    assert stored["blk.0.ffn_down.weight"] == GGMLQuantizationType.Q8_0  # 96 wide
    assert "output.weight" not in stored


def test_gelu_is_the_one_of_gpt2() -> None:
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double(), approximate="tanh").numpy()
    np.testing.assert_allclose(gelu(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"activation_function": "gelu"}, "activation 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scales attention"),
        ({"scale_attn_weights": False}, "scales attention"),
    ],
)
def test_a_student_that_llama_cpp_would_compute_otherwise_is_refused(
    save_student: Callable[..., Path], changes: dict[str, object], problem: str
) -> None:
    student = save_student("odd", **changes)
    with pytest.raises(NotExportableError, match=problem):
        check_gguf(load_student(student), load_tokenizer(student), NO_BOS, "student")


def test_another_architecture_is_refused(odd_student: Path) -> None:
    config = Qwen3Config(
        vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    said = "is a qwen3 model, expected one of gpt2, llama, mistral, qwen2; export it as onnx"
    with pytest.raises(NotExportableError, match=said):
        check_gguf(Qwen3ForCausalLM(config), load_tokenizer(odd_student), NO_BOS, "student")


def test_a_head_that_is_more_than_a_matrix_is_refused(odd_student: Path) -> None:
    model = load_student(odd_student)
    model.lm_head.bias = torch.nn.Parameter(torch.ones(model.config.vocab_size))
    with pytest.raises(NotExportableError, match="output head that is more than a matrix"):
        check_gguf(model, load_tokenizer(odd_student), NO_BOS, "student")
