"""Build or load the student, which can be any causal language model with the cache's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from storage.errors import RecordError, first_line, is_unreadable_tokenizer
from storage.reading.cache import Cache
from storage.records.identity import SPLITS
from storage.rows.kinds import KINDS
from storage.rows.segments import position_ids
from storage.tensors.devices import find_device
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.model_facts import context_length_of
from storage.tensors.packing import packed_hidden_states, packing_leak, relative_difference
from student.errors import (
    ArchitectureError,
    BrokenStudentError,
    NoSuchStudentError,
    StudentContextError,
    TokenizerMismatchError,
    UnknownPresetError,
    VocabularyMismatchError,
)
from student.processes import gpu_index

# Layers, width and heads of a GPT-2 architecture. distil is the shape of DistilGPT2.
PRESETS: dict[str, dict[str, int]] = {
    "mini": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "small": {"n_layer": 6, "n_embd": 384, "n_head": 6},
    "distil": {"n_layer": 6, "n_embd": 768, "n_head": 12},
}
_LONGEST_CONTEXT = 1024
# Largest relative difference that check_architecture accepts as rounding.
_TOLERANCE = 1e-3
# The output may have rows that stand for no token: as many as the tokenizer has ids, and this many more.
_FREE_PADDED_ROWS = 1024
# Run no code from a student's directory, and do not look for a missing file on the hub.
_AS_DATA = {"trust_remote_code": False, "local_files_only": True}


def build_student(preset: str, cache: Cache, seed: int) -> Any:
    """Return a student for `cache`: a preset or a config .json with new weights, or a checkpoint with its own.

    preset: name of a preset, path of a .json, or directory of a checkpoint; seed: seed of new weights.

    Raise UnknownPresetError, RecordError when the cache does not state a setting, the errors of check_fits and, for a
    checkpoint, those of load_fitting_student.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    if preset in PRESETS:
        model = transformers.AutoModelForCausalLM.from_config(_preset_config(preset, cache))
    elif Path(preset).suffix == ".json":
        model = _from_config_file(preset, cache)
    elif Path(preset).is_dir():
        return load_fitting_student(Path(preset), cache)
    else:
        raise UnknownPresetError(preset, list(PRESETS))
    check_fits(model, cache, preset)
    return model


def load_fitting_student(directory: Path, cache: Cache) -> Any:
    """Return a saved student that can read the rows of `cache`.

    Raise NoSuchStudentError, the errors of check_fits (VocabularyMismatchError, StudentContextError, ArchitectureError,
    BrokenStudentError), and those of check_tokenizer (TokenizerMismatchError or a CacheError).
    """
    model = load_student(directory)
    check_fits(model, cache, str(directory))
    check_tokenizer(directory, cache)
    return model


def load_student(directory: Path) -> Any:
    """Return a saved student with float32 weights; raise NoSuchStudentError when it cannot be loaded."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (directory / "config.json").is_file():
        raise NoSuchStudentError(str(directory), "no config.json")
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **_AS_DATA)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise NoSuchStudentError(str(directory), first_line(error)) from error


def weights_bytes(path: Path) -> int:
    """Return the size of a model's file, or of the files in its directory that hold the weights."""
    if path.is_file():
        return path.stat().st_size
    kinds = ("model*.safetensors", "pytorch_model*.bin", "onnx/*.onnx")
    found = ([file.stat().st_size for file in path.glob(kind)] for kind in kinds)
    return sum(next(filter(None, found), []))


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer saved in a student's directory; raise NoSuchStudentError when it cannot be loaded."""
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, **_AS_DATA)
    except BaseException as error:
        if not is_unreadable_tokenizer(error):
            raise
        raise NoSuchStudentError(str(directory), f"no tokenizer: {first_line(error)}") from error


def load_cache_tokenizer(cache: Cache) -> Any:
    """Return the tokenizer that is stored with a cache.

    Raise MissingFileError, UnsafePathError or HashMismatchError when its files are not those that the cache was begun
    with, RecordError when they are not a tokenizer, and VocabularyMismatchError when its ids do not fit the cache's
    vocabulary.
    """
    directory = cache.checked_tokenizer_dir()
    try:
        tokenizer = load_tokenizer(directory)
    except NoSuchStudentError as error:
        raise RecordError(str(directory), error.reason) from error
    vocab_size, used = cache.identity.vocab_size, max(tokenizer.get_vocab().values(), default=0) + 1
    if not used <= vocab_size <= 2 * used + _FREE_PADDED_ROWS:
        raise VocabularyMismatchError(str(directory), used, vocab_size)
    return tokenizer


def check_tokenizer(student: Path, cache: Cache) -> None:
    """Raise TokenizerMismatchError when the tokenizers of student and cache give one id two different tokens.

    Do nothing when the student or the cache has no tokenizer. Raise the errors of load_tokenizer for the student's, and
    those of load_cache_tokenizer.
    """
    if not (student / "tokenizer_config.json").is_file() or not cache.tokenizer_dir.is_dir():
        return
    cached = {token_id: token for token, token_id in load_cache_tokenizer(cache).get_vocab().items()}
    for token, token_id in sorted(load_tokenizer(student).get_vocab().items(), key=lambda entry: entry[1]):
        if cached.get(token_id, token) != token:
            raise TokenizerMismatchError(str(student), token_id, token, cached[token_id])


def check_fits(model: Any, cache: Cache, name: str) -> None:
    """Raise VocabularyMismatchError or StudentContextError when the model cannot read the cache's rows.

    Raise the errors of check_architecture too. name: the student's name in messages.
    """
    vocab_size = head_weight(model).shape[0]
    if vocab_size != cache.identity.vocab_size:
        raise VocabularyMismatchError(name, vocab_size, cache.identity.vocab_size)
    check_architecture(model, name)
    context_length = context_length_of(model)
    for what, needed in _longest_rows(cache).items():
        if needed > context_length:
            raise StudentContextError(name, context_length, needed, what)


@torch.no_grad()
def check_architecture(model: Any, name: str) -> None:
    """Raise ArchitectureError unless hidden states times head weight are the logits, and packed documents are isolated.

    Raise it also when the model does not take positions. Raise BrokenStudentError when the logits are not finite.

    The losses call the body and multiply by the head's weight themselves. They would ignore a bias, a scale or a cap of
    the head, and train another function than the model computes.
    """
    was_training = model.training
    model.eval()
    try:
        logits, from_head = _logits_and_product_with_head(model)
        leak = _packing_leak(model)
    except TypeError as error:
        raise ArchitectureError(name, "does not take positions") from error
    finally:
        model.train(was_training)
    if not bool(logits.isfinite().all()):
        raise BrokenStudentError(name)
    # Written with `not` so that NaN is refused too.
    if not relative_difference(from_head, logits) <= _TOLERANCE:
        raise ArchitectureError(name, "has an output head that is more than a matrix")
    if not leak <= _TOLERANCE:
        raise ArchitectureError(name, "lets packed documents see each other")


def _logits_and_product_with_head(model: Any) -> tuple[Tensor, Tensor]:
    """Return two [T, V] for the same few tokens: the model's logits, and hidden states times head weight."""
    length = min(6, context_length_of(model))
    ids = (torch.arange(length, device=model.device)[None] * 7 + 1) % head_weight(model).shape[0]
    hidden_TD = hidden_states(model, ids, torch.arange(length, device=model.device)[None])[0]
    return model(input_ids=ids, use_cache=False).logits[0], hidden_TD @ head_weight(model).T


def _packing_leak(model: Any) -> float:
    def hidden_of(ids: NDArray[np.int64], segment_lengths: list[NDArray[np.int64]]) -> Tensor:
        positions = np.stack([position_ids(lengths) for lengths in segment_lengths])
        return hidden_states(model, *(torch.from_numpy(array).to(model.device) for array in (ids, positions)))

    return packing_leak(hidden_of, vocab_size=head_weight(model).shape[0], context_length=context_length_of(model))


def hidden_states(model: Any, input_ids_NT: Tensor, position_ids_NT: Tensor) -> Tensor:
    """Return the last hidden states [N, T, D].

    A segment begins where the positions start again at 0. No segment attends to another.
    """
    return packed_hidden_states(model.base_model, input_ids_NT, position_ids_NT)


def head_weight(model: Any) -> nn.Parameter:
    """Return the weight of the output head [V, D]."""
    weight: nn.Parameter = model.get_output_embeddings().weight
    return weight


def choose_device(name: str) -> torch.device:
    """Return the device that --device names; raise ConfigError when it does not exist.

    For "auto", take the GPU of this process, if there is one. For a CPU, turn on the fast path of float32 products if
    it is as exact.
    """
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{gpu_index()}"
    device = find_device(name)
    if device.type == "cpu":
        use_fast_matmul()
    return device


def _preset_config(preset: str, cache: Cache) -> transformers.GPT2Config:
    teacher_context = cache.setting("teacher", "context_length")
    needed = max(_longest_rows(cache).values(), default=0)
    eos = cache.setting("tokenizer", "eos_token_id")
    return transformers.GPT2Config(
        vocab_size=cache.identity.vocab_size,
        n_positions=max(needed, min(teacher_context, _LONGEST_CONTEXT)),
        # The same function as gelu_new, in one fused operation.
        activation_function="gelu_pytorch_tanh",
        # A student that reads new rows in every step underfits, so dropout would only harm it.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        **PRESETS[preset],
    )


def _from_config_file(path: str, cache: Cache) -> Any:
    """Return a model with new weights as the file describes it.

    Take vocab_size, bos_token_id and eos_token_id from the cache where the file does not state them.
    """
    eos = cache.setting("tokenizer", "eos_token_id")
    stated = read_config_file(path)
    settings = {"vocab_size": cache.identity.vocab_size, "bos_token_id": eos, "eos_token_id": eos} | stated
    try:
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(settings.pop("model_type", "gpt2"), **settings)
        )
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise UnknownPresetError(path, list(PRESETS), first_line(error)) from error


def read_config_file(path: str) -> dict[str, Any]:
    """Return what a config .json states, without nulls; raise UnknownPresetError when it is not a JSON object."""
    try:
        content = json.loads(Path(path).read_bytes())
        return {name: value for name, value in content.items() if value is not None}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UnknownPresetError(path, list(PRESETS), first_line(error)) from error


def _longest_rows(cache: Cache) -> dict[str, int]:
    """Return the longest sequence in tokens that each kind in the cache may hold, by its rows' name in messages."""
    return {
        kind.sequences: sum(cache.setting(*names) for names in kind.longest_row_settings)
        for kind in KINDS.values()
        if any(cache.num_rows(kind.name, split) for split in SPLITS)
    }
