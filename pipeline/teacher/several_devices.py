"""A teacher that is larger than one device: its layers on several GPUs, in the host's memory and on disk (accelerate).

accelerate moves inputs to each layer and, for layers that no GPU holds, the weights. Embedding and head stay on the
first device, because the head is called apart from the model, and what the passes compute is read there.
"""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import tempfile
from typing import Any

import torch
from torch import nn

from storage.errors import MissingExtraError
from storage.tensors.model_facts import body_of


def require_accelerate() -> None:
    """Raise MissingExtraError when accelerate is not installed."""
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("--device-map", "accelerate", "accelerate")


def spread_options() -> dict[str, Any]:
    """Return the options of from_pretrained that spread a model over all devices, then memory, then disk."""
    # Weights on disk are read from the checkpoint. Only those that are stored otherwise than the model holds them are
    # written here.
    directory = tempfile.mkdtemp(prefix="teachonce-offload-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return {"device_map": "auto", "offload_folder": directory}


def gather_ends(model: Any) -> torch.device:
    """Keep embedding, head and last hidden states of a spread model on its first device. Return that device."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = embedding.weight is head.weight
    hook = getattr(embedding, "_hf_hook", None)
    device = torch.device(getattr(hook, "execution_device", None) or embedding.weight.device)
    for module in (embedding, head):
        _keep_resident(model, module, device)
    if is_tied:
        head.weight = embedding.weight

    def bring_back(body: nn.Module, inputs: object, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.to(device)
        return output

    body_of(model).register_forward_hook(bring_back)
    return device


def _keep_resident(model: nn.Module, module: nn.Module, device: torch.device) -> None:
    """Put the weights of a layer on a device for good."""
    from accelerate.hooks import remove_hook_from_module
    from transformers.integrations.accelerate import load_offloaded_parameter

    (path,) = [name for name, found in model.named_modules() if found is module]
    weights = {
        name: load_offloaded_parameter(model, f"{path}.{name}") if weight.is_meta else weight.detach()
        for name, weight in module.named_parameters(recurse=False)
    }
    remove_hook_from_module(module)
    for name, weight in weights.items():
        setattr(module, name, nn.Parameter(weight.to(device), requires_grad=False))
