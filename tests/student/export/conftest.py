"""Shared by the tests of exports: small students in directories, and the files made of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from storage import Cache
from student.export.command import write_export
from student.export.config import ExportConfig
from student.export.onnx import graph
from student.export.readers import onnx_file
from student.model.loading import load_student
from student.model.tokenizers import load_tokenizer
from tests.student.export.comparing import TEXT

# A vocabulary that nothing divides; and one with rows for no token, rows that 32 divides, and a head of its own.
SHAPES: dict[str, dict[str, Any]] = {
    "odd": {"vocab_size": 263, "n_embd": 24, "n_layer": 2, "n_head": 3, "activation_function": "gelu_new"},
    "untied": {"vocab_size": 307, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_inner": 96, "tie_word_embeddings": False},
}

MakeStudent = Callable[..., Path]


def make_bpe(directory: Path, vocab_size: int) -> None:
    """A byte-level BPE, trained as scripts/teacher/make_teacher.py does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT * 20], trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end).save_pretrained(directory)


@pytest.fixture(scope="session")
def save_student(tmp_path_factory: pytest.TempPathFactory) -> MakeStudent:
    """A random student of one of SHAPES, or with other settings, whose distributions are far from flat."""

    def save(shape: str = "odd", **changes: object) -> Path:
        directory = tmp_path_factory.mktemp("student") / "student"
        torch.manual_seed(3)
        settings = {"n_positions": 64, "initializer_range": 0.15, "eos_token_id": 0, "bos_token_id": 0}
        model = GPT2LMHeadModel(GPT2Config(**(settings | SHAPES[shape] | changes)))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(directory)
        make_bpe(directory, 263 if shape == "odd" else 300)
        return directory

    return save


@pytest.fixture(scope="session")
def students(save_student: MakeStudent) -> dict[str, Path]:
    return {shape: save_student(shape) for shape in SHAPES}


@pytest.fixture(params=SHAPES)
def student_dir(request: pytest.FixtureRequest, students: dict[str, Path]) -> Path:
    return students[request.param]


@pytest.fixture
def odd_student(students: dict[str, Path]) -> Path:
    return students["odd"]


def copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The files of an export of a student, made once for each student and format, not yet tried."""
    made: dict[tuple[Path, str, str], Path] = {}

    def export(student: Path, format: str, quantize: str = "none") -> Path:
        if (student, format, quantize) not in made:
            out = tmp_path_factory.mktemp("exported") / ("student.gguf" if format == "gguf" else "student")
            config = ExportConfig(student=student, out=out, format=format, quantize=quantize, text=Path("text"))
            model = load_student(student).eval()
            model.set_attn_implementation("eager")
            with pytest.MonkeyPatch.context() as patch:
                if (format, quantize) == ("onnx", "int8"):  # quantising begins with the same graph
                    plain = onnx_file(export(student, "onnx"))
                    patch.setattr(graph, "write_onnx", lambda model, name, path: copy_file(plain, path))
                write_export(config, model, load_tokenizer(student), out)
            made[student, format, quantize] = out
        return made[student, format, quantize]

    return export


@pytest.fixture
def export_config(odd_student: Path, tmp_path: Path) -> Callable[..., ExportConfig]:
    """An export of the odd student to GGUF, compared on a short text."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 8, encoding="utf-8")

    def make(**changes: object) -> ExportConfig:
        out = tmp_path / ("exported.gguf" if changes.get("format", "gguf") == "gguf" else "exported")
        settings: dict[str, object] = {
            "student": odd_student, "out": out, "format": "gguf", "text": text, "max_tokens": 300, "quiet": True,
        }  # fmt: skip
        return ExportConfig(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def ids() -> list[int]:
    return [int(i) for i in np.random.default_rng(0).integers(0, 250, 40)]


@pytest.fixture(scope="session")
def cached_student(cache: Cache, helpers: ModuleType, save_student: MakeStudent) -> tuple[Path, Cache]:
    """A student and a cache of its vocabulary and tokenizer."""
    directory = save_student("odd", vocab_size=257, eos_token_id=256)
    helpers.make_tokenizer(directory)
    return directory, cache
