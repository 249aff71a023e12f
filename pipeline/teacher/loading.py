"""Load the teacher and its tokenizer, and check what was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers

from pipeline.config import PrecomputeConfig
from pipeline.corpus.chats.template import choose_chat_template
from pipeline.corpus.tokenizer_calls import use_threads
from pipeline.errors import NoSuchTeacherError
from pipeline.teacher.fast_layers import use_fast_layers
from pipeline.teacher.model import Reader, Teacher
from pipeline.teacher.several_devices import gather_ends, require_accelerate, spread_options
from pipeline.teacher.weights import convert_weights, hash_weights
from storage.errors import ConfigError, UnusableModelError
from storage.tensors.checkpoints.adapters import merged
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.checkpoints.config_file import require_sound_config_file
from storage.tensors.checkpoints.first_passes import require_causal
from storage.tensors.checkpoints.loading import build_skeleton, load_checkpoint
from storage.tensors.devices import find_device
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.memory import keep_freed_memory
from storage.tensors.model_facts import context_length_of, vocab_size_of
from storage.text.tokenizer_files import load_tokenizer_files


def load_tokenizer(config: PrecomputeConfig) -> Any:
    """Load the teacher's tokenizer, with the one chat template of the run.

    Raises NoSuchTeacherError, or ChatTemplateError when the text is conversations that no template can render.
    """
    use_threads(config.tokenizer_threads)
    with _loading(config):
        require_sound_config_file(Path(config.teacher), transformers.CONFIG_MAPPING)
        tokenizer = load_tokenizer_files(transformers.AutoTokenizer, config.teacher, **_place(config))
    choose_chat_template(tokenizer, config)
    return tokenizer


def load_reader(config: PrecomputeConfig) -> Reader:
    """Load what decides how a text is tokenized: tokenizer and configuration. No weights are needed.

    Raises NoSuchTeacherError, or ChatTemplateError as load_tokenizer.
    """
    tokenizer = load_tokenizer(config)
    with _loading(config):
        skeleton = build_skeleton(transformers, config.teacher, **_place(config))
    return Reader(tokenizer, vocab_size=vocab_size_of(skeleton), context_length=context_length_of(skeleton))


def load_teacher(config: PrecomputeConfig) -> Teacher:
    """Load the teacher onto its device, hash its weights, and choose how it isolates packed documents.

    Raises NoSuchTeacherError, UnknownHeadError, LeakingTeacherError or MissingExtraError.
    """
    device = find_device(config.device)
    dtype = _choose_dtype(config.dtype, device)
    tokenizer = load_tokenizer(config)
    with _loading(config):
        model = load_checkpoint(transformers, config.teacher, **_place(config), **_options(config, dtype))
        weights_sha256 = hash_weights(model)
        weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
        # Leave requires_grad set: without it, PyTorch's fast float32 path on a CPU takes 16 times the memory and 6
        # times the time in beam search. Everything here runs in inference mode.
        model = merged(model).eval()
        _require_dtype_fits(model, config)
        device = gather_ends(model) if config.device_map else _move(model, device, dtype)
    with _loading(config), blaming_files(config.teacher, {}):
        teacher = Teacher(
            model,
            tokenizer,
            device,
            name=name_of(config),
            revision=config.revision,
            weights_sha256=weights_sha256,
            weights_bytes=weights_bytes,
        )
        teacher.check_head(config.teacher)
        teacher.choose_isolation(config.block_size, config.teacher)
    return teacher


def load_as_stored(config: PrecomputeConfig) -> tuple[Any, str]:
    """Return the teacher's model on the CPU as its files hold it, an adapter merged, and the hash of its weights.

    Raises NoSuchTeacherError, also for a model that is not causal, or MissingExtraError.
    """
    with _loading(config):
        model = load_checkpoint(transformers, config.teacher, **_place(config), dtype="auto")
        weights_sha256 = hash_weights(model)
        model = merged(model).eval()
        require_causal(model)
        return model, weights_sha256


def name_of(config: PrecomputeConfig) -> str:
    """Return the teacher's name, wherever it lies: that of its directory, or its hub id."""
    return Path(config.teacher).resolve().name if Path(config.teacher).is_dir() else config.teacher


def quantization_of(model: Any) -> str | None:
    """Return the method by which the model's weights are quantised, such as "gptq"; None for plain numbers."""
    quantizer = getattr(model, "hf_quantizer", None)
    return None if quantizer is None else str(quantizer.quantization_config.quant_method.value)


def _place(config: PrecomputeConfig) -> dict[str, Any]:
    """Return where transformers looks: a directory's files are all in it, and a hub id has a revision."""
    return {"local_files_only": True} if Path(config.teacher).is_dir() else {"revision": config.revision}


def _options(config: PrecomputeConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of from_pretrained that say in which format weights are kept, and where."""
    if config.device_map is None:
        return {"dtype": "auto"}
    require_accelerate()
    return {"dtype": dtype} | spread_options()


def _move(model: Any, device: torch.device, dtype: torch.dtype) -> torch.device:
    """Move the model to a device. Give plain weights their number format, and their layers the faster forms."""
    if quantization_of(model) is not None:
        model.to(device=device)
        return device
    convert_weights(model, device, dtype)
    if device.type == "cpu":
        use_fast_matmul(inputs_are_bfloat16=model.dtype == torch.bfloat16)
        keep_freed_memory()  # from here on: loading may need more memory than any pass
    use_fast_layers(model)
    return device


def _require_dtype_fits(model: Any, config: PrecomputeConfig) -> None:
    """Raise ConfigError for --dtype with a quantised model, whose layers compute in the format of their making."""
    method = quantization_of(model)
    if method is not None and config.dtype != "auto":
        raise ConfigError(
            f"--dtype {config.dtype}: the weights of {config.teacher} are quantised ({method}) and compute in "
            f"{str(model.dtype).removeprefix('torch.')}; leave --dtype out"
        )


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@contextmanager
def _loading(config: PrecomputeConfig) -> Iterator[None]:
    """Raise NoSuchTeacherError when the teacher's files cannot be used. transformers shows no progress of its own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    path = Path(config.teacher).expanduser()
    if path.is_file() or (config.teacher.startswith(("/", ".", "~")) and not path.is_dir()):
        raise NoSuchTeacherError(config.teacher, "a file" if path.is_file() else "no such directory")
    try:
        yield
    except UnusableModelError as error:
        raise NoSuchTeacherError(config.teacher, error.reason) from error
