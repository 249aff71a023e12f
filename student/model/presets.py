"""Build a student: a preset or a config file with new weights, or a checkpoint with its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from storage.errors import first_line
from storage.reading.cache import Cache
from student.errors import UnknownPresetError
from student.model.fitting import check_fits, load_fitting_student, longest_rows

# Layers, width and heads of a GPT-2 architecture. distil is the shape of DistilGPT2.
PRESETS: dict[str, dict[str, int]] = {
    "mini": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "small": {"n_layer": 6, "n_embd": 384, "n_head": 6},
    "distil": {"n_layer": 6, "n_embd": 768, "n_head": 12},
}
_LONGEST_CONTEXT = 1024


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


def _preset_config(preset: str, cache: Cache) -> transformers.GPT2Config:
    teacher_context = cache.setting("teacher", "context_length")
    needed = max(longest_rows(cache).values(), default=0)
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
        bos_token_id=_bos_token_id(cache),
        eos_token_id=eos,
        **PRESETS[preset],
    )


def _bos_token_id(cache: Cache) -> int | None:
    """Return the id that texts begin with, else the end of the text before."""
    bos: int | None = (*cache.identity.beginning_ids, cache.setting("tokenizer", "eos_token_id"))[0]
    return bos


def _from_config_file(path: str, cache: Cache) -> Any:
    """Return a model with new weights as the file describes it.

    Take vocab_size, bos_token_id and eos_token_id from the cache where the file does not state them.
    """
    eos = cache.setting("tokenizer", "eos_token_id")
    stated = read_config_file(path)
    bos = _bos_token_id(cache)
    settings = {"vocab_size": cache.identity.vocab_size, "bos_token_id": bos, "eos_token_id": eos} | stated
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
