"""Check what a config.json says about a model before anything of that size is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.disk.json_files import read_json_object
from storage.errors import UnusableModelError
from storage.text.tokenizer_files import NEEDS_OWN_CODE

# Sizes by the names that configs of transformers give them. Without one of these there is no model.
_SIZES = {
    *("vocab_size", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "max_position_embeddings", "n_positions"),
}
_COUNT = re.compile(r"(n|num)_\w+|\w+_(size|dim)")
# Configs hold a list of so many entries, and models build so many parts: a number far above any model's fills memory.
_LISTED = re.compile(r"(\w+_)?n?_?layers?|num_labels")
_MOST_LISTED = 10_000
# A loaded model is called by its fields, and only its last hidden states and logits are read.
PLAIN_OUTPUT = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


def require_sound_config(settings: dict[str, Any], known_types: Any) -> None:
    """Raise UnusableModelError for a config that describes no model: no architecture, or sizes that cannot be.

    settings: the content of config.json. known_types: the model types of the installed transformers.
    """
    _require_known_type(settings, known_types)
    _require_own_attention(settings)
    quantization = settings.get("quantization_config")
    if not isinstance(quantization, dict | None) or quantization == {}:
        raise UnusableModelError(
            f"quantization_config is {quantization!r} in its config, expected an object that names quant_method"
        )
    for name, value in _numbers(settings):
        least = 1 if name in _SIZES else 0 if _COUNT.fullmatch(name) else None
        if least is not None and value < least:
            raise UnusableModelError(f"{name} is {value} in its config, expected at least {least}")
        if _LISTED.fullmatch(name) and value > _MOST_LISTED:
            raise UnusableModelError(f"{name} is {value} in its config, expected at most {_MOST_LISTED:,}")
    if settings.get("is_encoder_decoder"):
        raise UnusableModelError("it is a sequence-to-sequence model (is_encoder_decoder), no causal language model")


def require_sound_config_file(directory: Path, known_types: Any) -> None:
    """Raise UnusableModelError as require_sound_config does for a directory's config.json, if there is one.

    transformers reads it also with a tokenizer.
    """
    if (directory / "config.json").exists():
        require_sound_config(read_json_object(directory / "config.json"), known_types)


def _require_known_type(settings: dict[str, Any], known_types: Any) -> None:
    model_type, auto_map = settings.get("model_type"), settings.get("auto_map")
    if isinstance(model_type, str) and model_type in known_types:
        return
    if auto_map:
        raise UnusableModelError(NEEDS_OWN_CODE)
    raise UnusableModelError(
        f"model_type is {model_type!r} in its config, expected an architecture of the installed transformers"
    )


def _require_own_attention(settings: dict[Any, Any]) -> None:
    """Raise UnusableModelError when a config, or one in it, names an attention at the hub.

    transformers fetches an attention of the form owner/name, which is code. Its setters take the name with underscores.
    """
    for name, value in settings.items():
        if "attn_implementation" in str(name) and "/" in str(value):
            raise UnusableModelError(NEEDS_OWN_CODE.replace("auto_map", str(name)))
        if isinstance(value, dict):
            _require_own_attention(value)


def _numbers(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a config and of the configs in it, each with its name."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value
