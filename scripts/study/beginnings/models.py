"""Make students as they begin: new, or a part of their teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.cutting.choice import even_layers, strongest
from pipeline.cutting.depth import keep_layers
from pipeline.cutting.importance import Importance, measure
from pipeline.cutting.width import Width, family_of, whole_width
from scripts.study.beginnings.sizes import Size
from scripts.study.networks import new_model
from storage.tensors.packing import Isolation

_NUM_BLOCKS_FOR_IMPORTANCE = 64


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """What students begin from."""

    size: Size
    teacher: Any
    importance: Importance

    @classmethod
    def of(cls, size: Size, teacher: Any, train: Tensor) -> Beginnings:
        """Measure the importance of the teacher's layers and neurons on some of the training blocks [N, T + 1]."""
        ids_NT = train[:_NUM_BLOCKS_FOR_IMPORTANCE, :-1]
        places_NT = torch.arange(ids_NT.shape[1]).expand_as(ids_NT)
        batches = zip(torch.split(ids_NT, 16), torch.split(places_NT, 16), strict=True)
        family = family_of(teacher, cuts_heads=False)
        return cls(size=size, teacher=teacher, importance=measure(teacher, batches, Isolation.PACKED, family))

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Layers that each cut keeps."""
        num_layers, num_kept = len(self.importance.layers), self.size.student.layers
        return {"even": even_layers(num_kept, num_layers), "importance": strongest(self.importance.layers, num_kept)}

    def model(self, name: str, seed: int) -> Any:
        """Return a new model initialised from `seed`, or a copy of a part of the teacher.

        name: fresh, or fresh with layers and width as in 'fresh 4x128'; a key of `layers`, or numbers of layers as in
        'layers 0 3'; a cut may end with its share of the MLP neurons, as in 'even, mlp 50 %'.
        """
        kind, *numbers = name.partition(",")[0].split()
        if kind == "fresh":
            return self._new_model(numbers, seed)
        layers = self.layers[kind] if kind in self.layers else tuple(map(int, numbers))
        model = keep_layers(self.teacher, layers, self._widths(layers, name))
        model.set_attn_implementation(self.teacher.config._attn_implementation)
        return model

    def _new_model(self, shape: list[str], seed: int) -> Any:
        config = self.size.student
        if shape:
            layers, width = map(int, shape[0].split("x"))
            config = replace(config, layers=layers, width=width)
        return new_model(config, self.teacher.config.vocab_size, self.size.block_size, seed, self.teacher.device)

    def _widths(self, layers: tuple[int, ...], name: str) -> list[Width] | None:
        _, _, percent = name.removesuffix(" %").partition(", mlp ")
        if not percent:
            return None
        whole, neurons_LF = whole_width(self.teacher), self.importance.neurons_LF
        assert neurons_LF is not None
        num_kept = len(whole.neurons) * int(percent) // 100
        return [replace(whole, neurons=strongest(neurons_LF[layer].tolist(), num_kept)) for layer in layers]
