"""Make students as they begin: new, or some layers of their teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.cutting.choice import even_layers, strongest
from pipeline.cutting.depth import keep_layers
from pipeline.cutting.importance import layer_importance
from scripts.study.beginnings.sizes import Size
from scripts.study.networks import new_model

_NUM_BLOCKS_FOR_IMPORTANCE = 64


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """What students begin from."""

    size: Size
    teacher: Any
    importance: list[float]

    @classmethod
    def of(cls, size: Size, teacher: Any, train: Tensor) -> Beginnings:
        """Measure the importance of the teacher's layers on some of the training blocks [N, T + 1]."""
        ids_NT = train[:_NUM_BLOCKS_FOR_IMPORTANCE, :-1]
        places_NT = torch.arange(ids_NT.shape[1]).expand_as(ids_NT)
        batches = zip(torch.split(ids_NT, 16), torch.split(places_NT, 16), strict=True)
        return cls(size=size, teacher=teacher, importance=layer_importance(teacher, batches))

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Layers that each cut keeps."""
        num_layers, num_kept = len(self.importance), self.size.student.layers
        return {"even": even_layers(num_kept, num_layers), "importance": strongest(self.importance, num_kept)}

    def model(self, name: str, seed: int) -> Any:
        """Return a new model initialised from `seed`, or a copy of some of the teacher's layers.

        name: fresh, a key of `layers`, or numbers of layers as in 'layers 0 3'.
        """
        vocab_size, device = self.teacher.config.vocab_size, self.teacher.device
        if name == "fresh":
            return new_model(self.size.student, vocab_size, self.size.block_size, seed, device)
        layers = self.layers.get(name) or tuple(int(number) for number in name.split()[1:])
        model = keep_layers(self.teacher, layers)
        model.set_attn_implementation(self.teacher.config._attn_implementation)
        return model
