"""Load a causal language model from files that may hold anything, or be those of something else."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from storage.disk.json_files import read_json_object
from storage.errors import UnusableModelError
from storage.progress import tell
from storage.tensors.checkpoints.adapters import apply_adapter, base_of, find_adapter
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.checkpoints.config_file import PLAIN_OUTPUT, require_sound_config
from storage.tensors.checkpoints.size import most_parameters_in_memory, require_room

_GENERATION_CONFIG = "generation_config.json"
_WEIGHTS = ("*.safetensors", "*.bin")
# So many parameters do no harm, whatever the files hold.
_FREE_PARAMETERS = 1 << 26


def load_checkpoint(library: Any, where: str, **options: Any) -> Any:
    """Return the causal language model in a directory or at a hub id, with its adapter applied but not merged.

    library: the module transformers; options: those of its from_pretrained, without dtype for a quantised model. No
    code from there runs, and nothing is asked.

    Raise UnusableModelError when there is none, or some of its weights are missing or have other sizes, and
    MissingExtraError for an adapter without peft.
    """
    settings: dict[str, Any] = {}
    with blaming_files(where, settings), ExitStack() as stack:
        adapter = find_adapter(where, library, options.get("revision"))
        if adapter and "device_map" in options:
            raise UnusableModelError("it has an adapter, which needs the model on one device: merge the two with peft")
        base = base_of(where, adapter, stack)
        settings |= _settings(library, base, options)
        require_sound_config(settings, library.CONFIG_MAPPING)
        if settings.get("quantization_config"):
            options["dtype"] = "auto"  # layers with quantised weights compute in the format of their making
        return apply_adapter(_load(library, base, settings, options), where, adapter)


def build_skeleton(library: Any, where: str, **options: Any) -> Any:
    """Return the causal language model in a directory or at a hub id without weights, on PyTorch's device meta.

    library, options: as in load_checkpoint. Only configuration files are read. Raise UnusableModelError.
    """
    settings: dict[str, Any] = {}
    with blaming_files(where, settings), ExitStack() as stack:
        base = base_of(where, find_adapter(where, library, options.get("revision")), stack)
        settings |= _settings(library, base, options)
        require_sound_config(settings, library.CONFIG_MAPPING)
        plain = {name: value for name, value in settings.items() if name != "quantization_config"}
        with torch.device("meta"):
            config = library.AutoConfig.for_model(**(plain | PLAIN_OUTPUT))
            return library.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def build_model(library: Any, settings: dict[str, Any], seed: int) -> Any:
    """Return a float32 causal language model with new weights, as a config.json describes it.

    library: the module transformers; settings: the content of config.json; seed: decides the weights.

    Raise UnusableModelError for a config that describes no model, or one that this machine's memory cannot hold.
    """
    require_sound_config(settings, library.CONFIG_MAPPING)

    def build() -> Any:
        config = library.AutoConfig.for_model(**(settings | PLAIN_OUTPUT | {"dtype": torch.float32}))
        return library.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)

    with blaming_files("", settings):
        require_room(build, most_parameters_in_memory(), "this machine's memory")
        torch.manual_seed(seed)
        return build()


def _settings(library: Any, where: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return what config.json states, for a hub id as the hub has it."""
    if Path(where).is_dir():
        return read_json_object(Path(where) / "config.json")
    settings, _ = library.PreTrainedConfig.get_config_dict(where, **options)
    return dict(settings)


def _load(library: Any, where: str, settings: dict[str, Any], options: dict[str, Any]) -> Any:
    """Load the weights; raise UnusableModelError when some are missing or have other sizes than the config says."""
    is_local = Path(where).is_dir()
    if is_local:
        if (Path(where) / _GENERATION_CONFIG).exists():
            read_json_object(Path(where) / _GENERATION_CONFIG)
        _require_weights_of_that_size(library, Path(where), settings)
        options = options | {"local_files_only": True}
    model, found = library.AutoModelForCausalLM.from_pretrained(
        where,
        trust_remote_code=False,
        output_loading_info=True,
        # Sizes that differ are named below. Without a bound on them, transformers must not allocate them.
        ignore_mismatched_sizes=is_local,
        **PLAIN_OUTPUT,
        **options,
    )
    if found["mismatched_keys"]:
        name, stored, described = sorted(found["mismatched_keys"])[0]
        raise UnusableModelError(f"{name} is {list(stored)} in its weights, {list(described)} by its config")
    if found["missing_keys"]:
        raise UnusableModelError(f"its weights lack {sorted(found['missing_keys'])[0]}")
    if found["unexpected_keys"]:
        names = sorted(found["unexpected_keys"])
        tell(f"{where}: {len(names)} of its weights have no place in the model, such as {names[0]}")
    return model


def _require_weights_of_that_size(library: Any, directory: Path, settings: dict[str, Any]) -> None:
    """Raise UnusableModelError when the config describes far more parameters than the files' bytes can hold as bits."""
    weights_bytes = sum(file.stat().st_size for kind in _WEIGHTS for file in directory.glob(kind) if file.is_file())
    if not weights_bytes:
        raise UnusableModelError("it has no weights: no model.safetensors or pytorch_model.bin, or they are empty")
    plain = {name: value for name, value in settings.items() if name != "quantization_config"}

    def build() -> Any:
        config = library.AutoConfig.for_model(**(plain | PLAIN_OUTPUT))
        return library.AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    require_room(build, 8 * weights_bytes + _FREE_PARAMETERS, f"{weights_bytes:,} bytes of weights")
