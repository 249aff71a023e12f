"""The whole export: write to a temporary path, run the result, and rename it only if it agrees with the student."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from storage.disk.directories import publishing_path
from storage.disk.files import refusals
from storage.errors import ConfigError
from storage.reading.cache import Cache
from student.export.config import ExportConfig
from student.export.held_out import cached_sequences, text_sequences
from student.export.model_card import data_of, licences_of, model_card
from student.export.readers import require
from student.export.trial import Trial, run_trial
from student.model.framing import read_framing
from student.model.loading import load_student
from student.model.tokenizers import check_tokenizer, load_tokenizer
from student.run_record import RUN_NAME, read_run

_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "gguf": ("gguf",), "safetensors": ()}


def export_student(config: ExportConfig) -> Trial:
    """Write a student in another format, run it, compare it with the student, publish it, and return the results.

    Raises ConfigError when --out exists, MissingExtraError, NoSuchStudentError, CheckpointError for a damaged run.json,
    BrokenStudentError, NotExportableError, VocabularyMismatchError, TokenizerMismatchError, HeldOutTextError or a
    CacheError; RuntimeFailedError, DisagreementError or OtherTokensError when the written file does not work. After an
    error, no file is left.
    """
    require(f"--format {config.format}", *_PACKAGES[config.format])
    if config.out.exists():
        raise ConfigError(f"--out {config.out}: something is there already; remove it, or name another place")
    model, tokenizer = load_student(config.student).eval(), load_tokenizer(config.student)
    run = read_run(config.student)
    model.set_attn_implementation("eager")  # the same function, in operations that every format has
    cache: Cache | None = None
    if config.cache is not None:
        cache, sequences = cached_sequences(config.cache, model, str(config.student), config.max_tokens)
        check_tokenizer(config.student, cache)
    else:
        assert config.text is not None
        framing = read_framing(config.student, model, tokenizer)
        sequences = text_sequences(config.text, model, tokenizer, framing, config.max_tokens, str(config.student))
    if config.format == "gguf":
        from student.export.gguf.file import check_lengths

        check_lengths(model, max(map(len, sequences)), str(config.student))
    with publishing_path(config.out) as staged:
        with refusals(config.out):
            write_export(config, model, tokenizer, staged, licences_of(data_of(run, cache)))
        trial = run_trial(config, model, tokenizer, staged, sequences)
        if staged.is_dir():
            with refusals(config.out):
                card = model_card(run, cache, trial, config.out.name)
                (staged / "README.md").write_text(card, encoding="utf-8")
    return trial


def write_export(config: ExportConfig, model: Any, tokenizer: Any, path: Path, licences: Sequence[str] = ()) -> None:
    """Write the files of an export without running them; raises NotExportableError.

    licences: those of all the text that the student was trained on, none when that is not known.
    """
    match config.format:
        case "gguf":
            from student.export.gguf.file import check_gguf, write_gguf

            framing = read_framing(config.student, model, tokenizer)
            check_gguf(model, tokenizer, framing, str(config.student))
            name = config.student.resolve().name
            write_gguf(model, tokenizer, framing, path, config.quantize, name=name, licences=licences)
        case "onnx":
            _write_onnx_directory(config, model, tokenizer, path)
        case _:
            copy.deepcopy(model).to(torch.float16).save_pretrained(path)
            _write_companions(config, tokenizer, path)


def _write_onnx_directory(config: ExportConfig, model: Any, tokenizer: Any, path: Path) -> None:
    """Write the graph and the files beside it. transformers.js expects onnx/model.onnx or onnx/model_quantized.onnx."""
    from student.export.onnx.graph import write_onnx
    from student.export.onnx.int8 import quantize_onnx

    plain = path / "onnx" / "model.onnx"
    write_onnx(model, str(config.student), plain)
    if config.quantize == "int8":
        quantize_onnx(plain, path / "onnx" / "model_quantized.onnx")
        plain.unlink()
    model.config.save_pretrained(path)
    model.generation_config.save_pretrained(path)
    _write_companions(config, tokenizer, path)


def _write_companions(config: ExportConfig, tokenizer: Any, path: Path) -> None:
    """Write the tokenizer and run.json, which says how texts begin and how selection scores."""
    tokenizer.save_pretrained(path)
    run = config.student / RUN_NAME
    if run.is_file():
        shutil.copyfile(run, path / RUN_NAME)
