"""Students: presets, config files, checkpoints; packed documents isolated; what does not fit is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipeline import SamplesConfig
from storage import Cache
from storage.tensors.model_facts import context_length_of, num_parameters
from student import EvaluateConfig, evaluate
from student.errors import (
    ArchitectureError,
    NoSuchStudentError,
    StudentContextError,
    TokenizerMismatchError,
    UnknownPresetError,
    VocabularyMismatchError,
)
from student.model.architecture import head_weight, hidden_states
from student.model.fitting import check_fits
from student.model.loading import load_student, weights_bytes
from student.model.presets import PRESETS, build_student
from tests.heads import FAMILIES, make_model


def test_a_preset_takes_vocabulary_and_context_from_the_cache(cache: Cache) -> None:
    model = build_student("mini", cache, seed=0)
    assert head_weight(model).shape == (257, 128)
    assert (model.config.n_layer, model.config.n_head) == (4, 4)
    assert context_length_of(model) == 64
    assert num_parameters(model) == sum(p.numel() for p in model.parameters())
    assert {"mini", "small", "distil"} <= set(PRESETS)


def test_a_config_file_and_a_checkpoint_directory(
    cache: Cache, preset: str, saved: Path, make_student: Callable[..., Any]
) -> None:
    fresh = build_student(preset, cache, seed=0)
    assert (fresh.config.n_embd, fresh.config.n_layer) == (16, 1)
    from_checkpoint = build_student(str(saved), cache, seed=5)
    for found, expected in zip(from_checkpoint.parameters(), make_student().parameters(), strict=True):
        assert torch.equal(found, expected)


def test_the_seed_decides_fresh_weights(cache: Cache, preset: str) -> None:
    models = [build_student(preset, cache, seed) for seed in (1, 1, 2)]
    weights = [head_weight(model).detach() for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_document_gets_the_hidden_states_that_it_gets_alone(
    make_student: Callable[..., Any], attention: str
) -> None:
    model = make_student(n_layer=2)
    model.set_attn_implementation(attention)
    input_ids = torch.randint(257, (3, 20), generator=torch.Generator().manual_seed(0))
    lengths = [[20], [1, 19], [7, 5, 8]]
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    with torch.inference_mode():
        packed = hidden_states(model, input_ids, positions)
        for row, row_lengths in enumerate(lengths):
            start = 0
            for length in row_lengths:
                alone = model.transformer(input_ids[row : row + 1, start : start + length]).last_hidden_state[0]
                torch.testing.assert_close(packed[row, start : start + length], alone, atol=1e-4, rtol=0)
                start += length


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_student_of_any_head_is_measured_as_it_speaks(bucketed_cache: Cache, tmp_path: Path, model_type: str) -> None:
    """A scaled or capped logit, or a bias of the head, must not go unnoticed."""
    model = make_model(model_type, 257, head_size=0.5)
    model.save_pretrained(tmp_path / "student")
    found = evaluate(EvaluateConfig(student=tmp_path / "student", cache=bucketed_cache.path, quiet=True))
    nll = []
    for batch in bucketed_cache.record_batches("soft_targets", "validation"):
        for row in batch.to_pylist():
            start = 0
            for length in row["segment_lengths"]:
                ids = torch.tensor([row["input_ids"][start : start + length]])
                start += length
                with torch.inference_mode():
                    logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=1)
                nll += (-logprobs.gather(1, ids[0, 1:, None])[:, 0]).tolist()
    assert found["perplexity"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-3)


def test_a_head_that_the_losses_cannot_compute_is_refused(bucketed_cache: Cache, tmp_path: Path) -> None:
    shape = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    path = tmp_path / "bert.json"
    path.write_text(json.dumps({"model_type": "bert", "is_decoder": True, "intermediate_size": 32} | shape))
    with pytest.raises(ArchitectureError, match="more than a matrix, a bias, a scale and a soft cap"):
        build_student(str(path), bucketed_cache, seed=0)


@pytest.mark.parametrize("preset", ["huge", "mini.bin", "no/such/directory"])
def test_an_unknown_preset(cache: Cache, preset: str) -> None:
    with pytest.raises(UnknownPresetError) as caught:
        build_student(preset, cache, seed=0)
    assert caught.value.preset == preset
    assert "mini, small, distil" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '"gpt2"', '{"model_type": "nothing"}', '{"model_type": "gpt2", "n_head": 3, "n_embd": 16}',
     '{"model_type": "bert"}', '{"n_layer": "one"}', '{"layers": {"kept": [0, 2]}}', None],
)  # fmt: skip
def test_a_config_file_that_is_none(cache: Cache, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((UnknownPresetError, ArchitectureError)):
        build_student(str(path), cache, seed=0)


def test_what_a_config_file_leaves_open_of_the_vocabulary_is_the_caches(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16}
    path.write_text(json.dumps(shape))
    model, eos = build_student(str(path), cache, seed=0), cache.identity.tokenizer["eos_token_id"]
    assert head_weight(model).shape[0] == cache.identity.vocab_size
    assert eos < cache.identity.vocab_size
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id) == (eos, eos)
    path.write_text(json.dumps(shape | {"vocab_size": None, "eos_token_id": None}))
    assert build_student(str(path), cache, seed=0).config.to_dict() == model.config.to_dict()
    path.write_text(json.dumps(shape | {"eos_token_id": 3}))
    assert build_student(str(path), cache, seed=0).config.eos_token_id == 3
    path.write_text(json.dumps(shape | {"vocab_size": 100}))
    with pytest.raises(VocabularyMismatchError, match=r"a config \.json may leave vocab_size out"):
        build_student(str(path), cache, seed=0)


def test_another_vocabulary(cache: Cache, saved: Path, make_student: Callable[..., Any], tmp_path: Path) -> None:
    make_student(vocab_size=256).save_pretrained(tmp_path / "other")
    with pytest.raises(VocabularyMismatchError) as caught:
        build_student(str(tmp_path / "other"), cache, seed=0)
    assert (caught.value.student_vocab_size, caught.value.cache_vocab_size) == (256, 257)
    check_fits(load_student(saved), cache, "saved")


@pytest.mark.parametrize(("n_positions", "fits"), [(31, False), (32, True)])
def test_a_context_too_short_for_the_blocks(
    cache: Cache, shape: dict[str, Any], tmp_path: Path, n_positions: int, fits: bool
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shape | {"model_type": "gpt2", "n_positions": n_positions}))
    if fits:
        build_student(str(path), cache, seed=0)
        return
    with pytest.raises(StudentContextError) as caught:
        build_student(str(path), cache, seed=0)
    assert (caught.value.context_length, caught.value.needed) == (31, 32)
    assert "blocks" in str(caught.value)


def test_a_context_too_short_for_the_samples(
    helpers: ModuleType,
    teacher_dir: Path,
    text_file: Path,
    shape: dict[str, Any],
    tmp_path: Path,
) -> None:
    samples = SamplesConfig(num_prompts=4, prompt_tokens=6, max_new_tokens=30)
    config = helpers.tiny_config(teacher_dir, text_file, tmp_path / "cache", kinds=("samples",), samples=samples)
    cache = helpers.precomputed(config)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shape | {"model_type": "gpt2", "n_positions": 34}))
    with pytest.raises(StudentContextError) as caught:
        build_student(str(path), cache, seed=0)
    assert "samples" in str(caught.value)


def test_no_student_there(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "empty").mkdir()
    without_weights = shutil.copytree(saved, tmp_path / "without")
    (without_weights / "model.safetensors").unlink()
    broken_config = shutil.copytree(saved, tmp_path / "broken")
    (broken_config / "config.json").write_text("{")
    for directory in (tmp_path / "nothing", tmp_path / "empty", without_weights, broken_config):
        with pytest.raises(NoSuchStudentError) as caught:
            load_student(directory)
        assert caught.value.path == str(directory)


def test_a_student_with_truncated_weights(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(NoSuchStudentError):
        load_student(saved)


def test_a_preset_is_no_directory_of_that_name(
    cache: Cache, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer may be another's."""
    directory = Path(shutil.copytree(saved, tmp_path / "mini", dirs_exist_ok=True))
    shutil.copytree(cache.tokenizer_dir, directory, dirs_exist_ok=True)
    tokenizer = directory / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    tokenizer.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert build_student("mini", cache, seed=0).config.n_embd == 128
    with pytest.raises(TokenizerMismatchError):
        build_student("./mini", cache, seed=0)


@pytest.mark.parametrize(
    ("names", "num_bytes"),
    [
        (["model.safetensors"], 1),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], 3),
        (["pytorch_model.bin"], 1),
        (["model.safetensors", "pytorch_model.bin"], 1),  # transformers reads the first
        (["onnx/model.onnx"], 1),
        (["config.json", "adapter.safetensors"], 0),
    ],
)
def test_the_bytes_of_weights_are_those_of_the_files_that_are_read(
    tmp_path: Path, names: list[str], num_bytes: int
) -> None:
    for size, name in enumerate(names, 1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert weights_bytes(tmp_path) == num_bytes
    if num_bytes:
        assert weights_bytes(tmp_path / names[0]) == 1
