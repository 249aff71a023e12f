"""Making or loading the student: any causal language model with the cache's vocabulary."""

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
from storage.records.manifest import SPLITS
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
from student.processes import local_rank

# GPT-2 architecture: layers, width, heads. distil is the shape of DistilGPT2.
PRESETS: dict[str, dict[str, int]] = {
    "mini": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "small": {"n_layer": 6, "n_embd": 384, "n_head": 6},
    "distil": {"n_layer": 6, "n_embd": 768, "n_head": 12},
}
_LONGEST_CONTEXT = 1024
# Relative difference that rounding may make in what check_architecture compares.
_TOLERANCE = 1e-3
# Rows of the output that stand for no token: as many as there are tokens, and these.
_FREE_PADDED_ROWS = 1024
# Nothing that a stranger wrote is run, and nothing that is missing is looked for on the hub.
_AS_DATA = {"trust_remote_code": False, "local_files_only": True}


def build_student(preset: str, cache: Cache, seed: int) -> Any:
    """A student for `cache`: a preset, a config .json with fresh weights, or a checkpoint's weights.

    Raises UnknownPresetError, VocabularyMismatchError, TokenizerMismatchError or StudentContextError.
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
    """A saved student that reads the rows of `cache`.

    Raises NoSuchStudentError, VocabularyMismatchError, TokenizerMismatchError, StudentContextError, ArchitectureError
    or BrokenStudentError.
    """
    model = load_student(directory)
    check_fits(model, cache, str(directory))
    check_tokenizer(directory, cache)
    return model


def load_student(directory: Path) -> Any:
    """A saved student; raises NoSuchStudentError."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (directory / "config.json").is_file():
        raise NoSuchStudentError(str(directory), "no config.json")
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **_AS_DATA)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise NoSuchStudentError(str(directory), first_line(error)) from error


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer saved in a student's directory; raises NoSuchStudentError."""
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, **_AS_DATA)
    except BaseException as error:
        if not is_unreadable_tokenizer(error):
            raise
        raise NoSuchStudentError(str(directory), f"no tokenizer: {first_line(error)}") from error


def load_cache_tokenizer(cache: Cache) -> Any:
    """The tokenizer that travels with a cache.

    Raises MissingFileError, UnsafePathError or HashMismatchError for other files than the cache was begun
    with, RecordError when they are no tokenizer, VocabularyMismatchError when it is not one for the cache's rows.
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
    """Raise TokenizerMismatchError when an id means another token to the student than in the cache.

    Where either has no tokenizer nothing can be said.
    """
    if not (student / "tokenizer_config.json").is_file() or not cache.tokenizer_dir.is_dir():
        return
    cached = {token_id: token for token, token_id in load_cache_tokenizer(cache).get_vocab().items()}
    for token, token_id in sorted(load_tokenizer(student).get_vocab().items(), key=lambda entry: entry[1]):
        if cached.get(token_id, token) != token:
            raise TokenizerMismatchError(str(student), token_id, token, cached[token_id])


def check_fits(model: Any, cache: Cache, name: str) -> None:
    """Raise VocabularyMismatchError or StudentContextError when the student cannot read the cache."""
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
    """Raise ArchitectureError unless head times hidden state gives the logits, and packed documents are isolated.

    Raises BrokenStudentError when the logits are not finite.

    The losses call body and head apart; a head with a bias, a scale or a cap would be trained as another one.
    """
    was_training = model.training
    model.eval()
    try:
        logits, from_head = _logits_and_what_the_head_gives(model)
        leak = _packing_leak(model)
    except TypeError as error:
        raise ArchitectureError(name, "does not take positions") from error
    finally:
        model.train(was_training)
    if not bool(logits.isfinite().all()):
        raise BrokenStudentError(name)
    # NaN is refused too.
    if not relative_difference(from_head, logits) <= _TOLERANCE:
        raise ArchitectureError(name, "has an output head that is more than a matrix")
    if not leak <= _TOLERANCE:
        raise ArchitectureError(name, "lets packed documents see each other")


def _logits_and_what_the_head_gives(model: Any) -> tuple[Tensor, Tensor]:
    """The model's own logits [T, V] of a few tokens, and those of head times hidden state."""
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
    """Last hidden states [N, T, D]; segments, told by positions that start again at 0, see only themselves."""
    return packed_hidden_states(model.base_model, input_ids_NT, position_ids_NT)


def head_weight(model: Any) -> nn.Parameter:
    """The output embedding [V, D]."""
    weight: nn.Parameter = model.get_output_embeddings().weight
    return weight


def choose_device(name: str) -> torch.device:
    """The device that --device names, its float32 products on the fast path where that is exact."""
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{local_rank()}"
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
        # The same function as gelu_new in one fused operation.
        activation_function="gelu_pytorch_tanh",
        # A student that copies a teacher from fresh rows underfits; dropout only costs it.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        **PRESETS[preset],
    )


def _from_config_file(path: str, cache: Cache) -> Any:
    """A model as the file says; what it leaves open of the vocabulary is the cache's."""
    eos = cache.setting("tokenizer", "eos_token_id")
    try:
        stated = {name: value for name, value in json.loads(Path(path).read_text()).items() if value is not None}
        settings = {"vocab_size": cache.identity.vocab_size, "bos_token_id": eos, "eos_token_id": eos} | stated
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(settings.pop("model_type", "gpt2"), **settings)
        )
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise UnknownPresetError(path, list(PRESETS), first_line(error)) from error


def _longest_rows(cache: Cache) -> dict[str, int]:
    """Longest sequence that each kind in the cache may hold."""

    def has_rows(kind: str) -> bool:
        return any(cache.num_rows(kind, split) for split in SPLITS)

    longest = {"blocks": cache.identity.block_size} if has_rows("soft_targets") else {}
    for kind in filter(has_rows, ("samples", "beams")):
        longest_prompt = cache.setting("data", "longest_prompt_tokens", kind)
        longest[kind] = longest_prompt + cache.setting("config", kind, "max_new_tokens")
    return longest
