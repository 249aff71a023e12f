"""Load the teacher and its tokenizer, and check what was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from pipeline.config import PrecomputeConfig
from pipeline.corpus.chats.template import choose_chat_template
from pipeline.errors import NoSuchTeacherError
from pipeline.teacher.fast_layers import use_fast_layers
from pipeline.teacher.model import Teacher
from storage.errors import first_line
from storage.tensors.devices import find_device
from storage.tensors.matmul_precision import use_fast_matmul


def load_tokenizer(config: PrecomputeConfig) -> Any:
    """Load the teacher's tokenizer, with the one chat template of the run.

    Raises NoSuchTeacherError, or ChatTemplateError when the text is conversations that no template can render.
    """
    tokenizer = _loading(
        config, lambda: transformers.AutoTokenizer.from_pretrained(config.teacher, revision=config.revision)
    )
    if len(tokenizer) == 0:
        raise NoSuchTeacherError(config.teacher, "it has no tokenizer")
    choose_chat_template(tokenizer, config)
    return tokenizer


def load_teacher(config: PrecomputeConfig) -> Teacher:
    """Load the teacher onto its device, hash its weights, and check that it isolates packed documents.

    Raises NoSuchTeacherError or LeakingTeacherError.
    """
    device = find_device(config.device)
    tokenizer = load_tokenizer(config)
    model, loading = _loading(
        config,
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            config.teacher, revision=config.revision, dtype="auto", output_loading_info=True
        ),
    )
    if loading["missing_keys"]:
        raise NoSuchTeacherError(config.teacher, f"its weights lack {sorted(loading['missing_keys'])[0]}")
    weights_sha256 = hash_weights(model)
    weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
    # Leave requires_grad set: without it, PyTorch's fast float32 path on a CPU takes 16 times the memory and 6 times
    # the time in beam search. Everything here runs in inference mode.
    model = model.to(device=device, dtype=_choose_dtype(config.dtype, device)).eval()
    if device.type == "cpu":
        use_fast_matmul(inputs_are_bfloat16=model.dtype == torch.bfloat16)
    use_fast_layers(model)
    name = Path(config.teacher).resolve().name if Path(config.teacher).is_dir() else config.teacher
    teacher = Teacher(
        model,
        tokenizer,
        device,
        name=name,
        revision=config.revision,
        weights_sha256=weights_sha256,
        weights_bytes=weights_bytes,
    )
    teacher.use_whole_model_if_head_is_more_than_linear()
    teacher.check_isolation()
    return teacher


def hash_weights(model: nn.Module) -> str:
    """Return the hex sha256 of the names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _loading(config: PrecomputeConfig, load: Callable[[], Any]) -> Any:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if config.teacher.startswith(("/", ".", "~")) and not Path(config.teacher).is_dir():
        raise NoSuchTeacherError(config.teacher, "no such directory")
    try:
        return load()
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise NoSuchTeacherError(config.teacher, first_line(error)) from error
