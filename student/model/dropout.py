"""One rule of dropout for every student, wherever its config and its weights come from."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

from storage.errors import ConfigError, first_line

# Names of shares that drop whole layers or paths, not units.
_OF_LAYERS = re.compile("layer_?drop|drop_?(path|connect)")
# Names of shares in heads that a language model does not have.
_OF_OTHER_HEADS = re.compile("summary|classif")


def set_dropout(model: Any, dropout: float) -> None:
    """Let a model drop this share of units wherever it has a dropout, and no layers; state both in its config.

    Modules of dropout are found by their class. Many architectures call a function instead, with a number that a
    module or a config holds; its name has "drop" in it. Raise ConfigError when the config must not say so.
    """
    try:
        _set_everywhere(model, dropout)
        if dropout:
            with torch.device("meta"):
                type(model)(copy.deepcopy(model.config))  # as it will be loaded
    except Exception as error:  # whatever an architecture's own code raises
        raise ConfigError(
            f"--dropout {dropout}: this architecture cannot have it ({first_line(error)}); expected 0 or None"
        ) from error


def _set_everywhere(model: Any, dropout: float) -> None:
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = dropout
        _set_numbers(module, dropout)
    for config in {id(config): config for module in model.modules() for config in _configs(module)}.values():
        _set_numbers(config, dropout)


def _set_numbers(owner: Any, dropout: float) -> None:
    for name, value in list(vars(owner).items()):
        if "drop" in name and type(value) in (int, float) and not _OF_OTHER_HEADS.search(name):
            share = 0.0 if _OF_LAYERS.search(name) else dropout
            setattr(owner, name, share or type(value)(0))  # some configs hold a whole number


def _configs(owner: Any) -> Iterator[Any]:
    """Yield the configs that a module or a config holds, and those in them."""
    for value in vars(owner).values():
        if isinstance(value, PreTrainedConfig):
            yield value
            yield from _configs(value)
