"""Apply an adapter, such as a LoRA, that lies beside a model's weights or names the model that it adapts."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.disk.json_files import read_json_object
from storage.errors import MissingExtraError, UnusableModelError

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter: its revision, and what its adapter_config.json states."""

    revision: str | None
    settings: dict[str, Any]


def find_adapter(where: str, library: Any, revision: str | None) -> Adapter | None:
    """Return the adapter in a directory or at a hub id, None when there is none.

    library: the module transformers. Raise MissingExtraError when there is one and peft is not installed,
    UnusableModelError when its config is none, or names code to import.
    """
    if Path(where).is_dir():
        found = where if (Path(where) / ADAPTER_CONFIG).exists() else None
        config = Path(where) / ADAPTER_CONFIG
    else:
        found = library.utils.find_adapter_config_file(where, revision=revision)
        config = Path(found or "")
    if found is None:
        return None
    settings = read_json_object(config)
    if settings.get("megatron_config") is not None or settings.get("auto_mapping") is not None:
        raise UnusableModelError(f"{ADAPTER_CONFIG} names code of its own, and code from a checkpoint never runs")
    kinds, kind = require_peft().PeftType.__members__, str(settings.get("peft_type"))
    if kind not in kinds or "PROMPT" in kind or "TUNING" in kind:
        raise UnusableModelError(f"peft_type is {kind!r} in {ADAPTER_CONFIG}, expected one that merges, such as LORA")
    return Adapter(revision=revision, settings=settings)


def require_peft(what: str = f"a model with an adapter ({ADAPTER_CONFIG})") -> Any:
    """Return the module peft; raise MissingExtraError, which names what needs it, when it is not installed."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise MissingExtraError(what, "peft", "peft") from error


def base_of(where: str, adapter: Adapter | None, stack: ExitStack) -> str:
    """Return where the model that the adapter adapts lies: there itself, or what adapter_config.json names.

    transformers applies an adapter beside weights by itself, and cannot merge it. So for one in the same directory,
    return a directory of links without it, which lives as long as `stack`.
    """
    if adapter is None:
        return where
    if (Path(where) / "config.json").exists():
        links = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for path in Path(where).iterdir():
            if not path.name.startswith("adapter_"):
                (links / path.name).symlink_to(path.resolve())
        return str(links)
    base = adapter.settings.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UnusableModelError(f"{ADAPTER_CONFIG} names no model (base_model_name_or_path)")
    return base


def apply_adapter(model: Any, where: str, adapter: Adapter | None) -> Any:
    """Return the model with the adapter beside its layers; `merged` makes them one.

    Raise UnusableModelError when the adapter lacks weights, or is of a kind that cannot be merged.
    """
    if adapter is None:
        return model
    if Path(where).is_dir() and not any(Path(where).glob("adapter_model.*")):
        raise UnusableModelError("it has no adapter_model.safetensors beside its adapter_config.json")
    with warnings.catch_warnings():
        # peft only warns, and leaves layers as they are, when the adapter's weights have other names.
        warnings.filterwarnings("error", message=".*(missing adapter keys|unexpected keys)")
        adapted = require_peft().PeftModel.from_pretrained(model, where, revision=adapter.revision)
    if not hasattr(adapted, "merge_and_unload"):
        raise UnusableModelError(f"its adapter is a {adapter.settings['peft_type']}, which cannot be merged")
    return adapted


def merged(model: Any) -> Any:
    """Return the model with the adapter that load_checkpoint applied, if there is one, merged into float32 weights."""
    return model.float().merge_and_unload() if hasattr(model, "merge_and_unload") else model
