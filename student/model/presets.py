"""Build a student: a preset or a config file with new weights, or a checkpoint with its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from storage.disk.json_files import read_json_object
from storage.errors import UnusableModelError
from storage.reading.cache import Cache
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.checkpoints.loading import build_model
from storage.tensors.packing import Isolation
from student.errors import BrokenStudentError, UnknownPresetError
from student.model.architecture import output_head
from student.model.enlarging import enlarge_weights
from student.model.fitting import check_fits, load_fitting_student, longest_rows
from student.model.isolation import isolation_of
from student.model.loading import learn_all_embeddings, require_unquantized

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
    if preset in PRESETS:
        settings = _preset_config(preset, cache).to_dict()
    elif Path(preset).suffix == ".json" and not Path(preset).is_dir():
        settings = _with_vocabulary(read_config_file(preset), cache)
    elif Path(preset).is_dir():
        model = load_fitting_student(Path(preset), cache)
        _check_as_if_trained(model.config.to_dict(), cache, preset)
        return model
    else:
        raise UnknownPresetError(preset, list(PRESETS))
    isolation = _check_as_if_trained(settings, cache, preset)
    model = _with_new_weights(settings, preset, seed)
    model.isolation = isolation
    output_head(model)  # find its form now: in a step, the passes that find it would disturb the gradients
    return model


def _check_as_if_trained(settings: dict[str, Any], cache: Cache, preset: str) -> Isolation:
    """Return how the model will read packed documents.

    Raise UnknownPresetError or the errors of check_fits for a model that would be refused when it is trained.

    New weights are so small that a cap, a bias or a leak changes nothing yet. So what is checked is a model with large
    weights, which is gone before the student is made.
    """
    model = _with_new_weights(settings, preset, seed=0).eval()
    enlarge_weights(model)
    try:
        with blaming_files("", settings):
            check_fits(model, cache, preset)
    except UnusableModelError as error:
        raise UnknownPresetError(preset, list(PRESETS), error.reason) from error
    except BrokenStudentError as error:
        raise UnknownPresetError(preset, list(PRESETS), "with large weights its logits are not finite") from error
    return isolation_of(model)


def _with_new_weights(settings: dict[str, Any], preset: str, seed: int) -> Any:
    """Return a model as its settings describe it. Raise UnknownPresetError when they describe none."""
    try:
        require_unquantized(settings)
        model = build_model(transformers, settings, seed)
    except UnusableModelError as error:
        raise UnknownPresetError(preset, list(PRESETS), error.reason) from error
    learn_all_embeddings(model)
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


def _with_vocabulary(stated: dict[str, Any], cache: Cache) -> dict[str, Any]:
    """Return the settings of a config file with what it leaves open, or null, of the vocabulary from the cache.

    A pad_token_id outside the vocabulary, as some architectures have by default, becomes None: padding is never read.
    """
    eos = cache.setting("tokenizer", "eos_token_id")
    open_settings = {"vocab_size": cache.identity.vocab_size, "bos_token_id": _bos_token_id(cache), "eos_token_id": eos}
    stated = {name: value for name, value in stated.items() if value is not None or name not in open_settings}
    settings = {"model_type": "gpt2"} | open_settings | {"pad_token_id": None} | stated
    pad, vocab_size = settings["pad_token_id"], settings["vocab_size"]
    if isinstance(pad, int) and isinstance(vocab_size, int) and not 0 <= pad < vocab_size:
        settings["pad_token_id"] = None
    return settings


def read_config_file(path: str) -> dict[str, Any]:
    """Return what a config .json states.

    Raise UnknownPresetError when it is not a JSON object, or when it is one of something else: without a model_type it
    describes a GPT-2, and of that it has to state something.
    """
    try:
        stated = read_json_object(Path(path))
    except UnusableModelError as error:
        raise UnknownPresetError(path, list(PRESETS), error.reason) from error
    known = {"model_type", *transformers.GPT2Config().to_dict(), *transformers.GPT2Config.attribute_map}
    if stated and known.isdisjoint(stated):
        raise UnknownPresetError(path, list(PRESETS), "it states no model_type, and nothing of a GPT-2")
    return stated
