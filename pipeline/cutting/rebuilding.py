"""Make a smaller model from a larger one's config and weights, both changed."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from torch import Tensor, nn

from pipeline.errors import UncuttableTeacherError
from storage.errors import UnusableModelError
from storage.tensors.checkpoints.blame import blaming_files
from storage.tensors.checkpoints.config_file import PLAIN_OUTPUT
from storage.tensors.model_facts import bodies_of


def layers_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Return the model's list of layers and its name in the model.

    Raises UncuttableTeacherError unless there is one list of as many modules as the config has layers.
    """
    num_layers = num_layers_of(model)
    decoder = bodies_of(model)[-1]  # of several, the one that reads text
    lists = {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    }
    outermost = [module for name, module in lists.items() if not any(name.startswith(f"{o}.") for o in lists)]
    if len(outermost) != 1:
        found = f"{len(outermost)} lists of {num_layers} modules"
        raise UncuttableTeacherError(f"{found} in its {type(decoder).__name__}, expected one, its layers")
    (layers,) = outermost
    return next(name for name, module in model.named_modules() if module is layers), layers


def num_layers_of(model: Any) -> int:
    """Return the number of layers that the config states; raise UncuttableTeacherError when it states none."""
    found = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(found, int):
        raise UncuttableTeacherError("its config states no num_hidden_layers")
    return found


def text_settings(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the part of `settings`, the model's config as a dict, that describes the part that reads text."""
    text = model.config.get_text_config()
    names = [
        name for name, value in settings.items() if isinstance(value, dict) and getattr(model.config, name) is text
    ]
    part: dict[str, Any] = settings[names[0]] if names else settings
    return part


def own_name(model: Any, name: str) -> str:
    """Return the name under which the config of the model's text part stores a setting: n_layer for GPT-2's layers."""
    return str(model.config.get_text_config().attribute_map.get(name, name))


def rebuilt(model: Any, settings: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """Return a model of these settings with copies of these weights, on the model's device.

    settings: a whole config as a dict; state: tensors by their names in the new model, in any number format.

    Raises UncuttableTeacherError when the weights are not those of such a model.
    """
    try:
        with blaming_files("", settings):
            config = transformers.AutoConfig.for_model(**(settings | PLAIN_OUTPUT))
            smaller = type(model)._from_config(config, dtype=model.dtype)
            copies = {name: tensor.detach().clone() for name, tensor in state.items()}
            smaller.load_state_dict(copies, assign=True)
            smaller.tie_weights()
    except UnusableModelError as error:
        raise UncuttableTeacherError(f"no model results: {error.reason}") from error
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.to(model.device).train(model.training)
