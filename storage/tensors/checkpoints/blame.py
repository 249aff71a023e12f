"""Say in one line why the files of a model cannot be used."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.errors import TeachonceError, UnusableModelError, first_line
from storage.tensors.memory import is_out_of_memory
from storage.text.tokenizer_files import NEEDS_OWN_CODE


@contextmanager
def blaming_files(where: str, settings: dict[str, Any]) -> Iterator[None]:
    """Raise UnusableModelError for whatever is raised while a model is loaded, or makes its first passes.

    Files that are no model, and configs that do not fit together, make transformers raise anything. Our own errors, and
    those that mean out of memory, pass.

    where: directory or hub id of the files, "" when there are none; settings: what their config.json states.
    """
    try:
        yield
    except TeachonceError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise UnusableModelError(_reason(error, where, settings)) from error


def _reason(error: Exception, where: str, settings: dict[str, Any]) -> str:
    """Return in one line why a model cannot be loaded; name the setting or the file that is to blame."""
    if "trust_remote_code" in str(error):
        return NEEDS_OWN_CODE
    if isinstance(error, pickle.UnpicklingError):
        return "its .bin file holds more than tensors, and code from a checkpoint never runs: save it as safetensors"
    if isinstance(error, KeyError) and error.args:
        named = _named_setting(settings, error.args[0])
        return f"{named} in its config, which transformers does not know" if named else f"no {error.args[0]!r}"
    broken = _broken_weights(Path(where)) if where else None
    return f"{broken}: {first_line(error)}" if broken else first_line(error)


def _broken_weights(directory: Path) -> str | None:
    """Return the name of the first .safetensors file whose header cannot be read."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError):
            return file.name
    return None


def _named_setting(settings: dict[str, Any], value: object) -> str | None:
    """Return the setting, of the config or of one in it, that has this value, as "name is 'value'"; None for none."""
    if not isinstance(value, str):
        return None
    names = [name for name, found in settings.items() if found == value]
    parts = (_named_setting(found, value) for found in settings.values() if isinstance(found, dict))
    return f"{names[0]} is {value!r}" if names else next(filter(None, parts), None)
