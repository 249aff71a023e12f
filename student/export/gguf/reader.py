"""Run a GGUF file in numpy, read by gguf's own reader: a second forward pass and a second tokenizer, for comparison.

transformers reads GGUF only if accelerate is installed, which is no dependency.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, quants

from student.export.gguf.cutting import Cut, cut_of
from student.export.gguf.forward import Forward, Gpt2, Llama, Qwen2
from student.export.logits import Logits

_FORWARD: dict[str, type[Forward]] = {"gpt2": Gpt2, "llama": Llama, "qwen2": Qwen2}


class GgufReader:
    """A file of one of llama.cpp's architectures, with weights unpacked to float32."""

    def __init__(self, path: Path) -> None:
        self._file = GGUFReader(path)
        architecture = str(self._field("general.architecture"))
        weights = {t.name: quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in self._file.tensors}
        self._forward = _FORWARD[architecture](weights, lambda name: self._field(f"{architecture}.{name}"))

    def reset(self) -> None:
        """Forget the sequence."""
        self._forward.reset()

    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read the next T ids; return their logits [T, V]."""
        return self._forward.read(input_ids)

    def tokenize(self, text: str) -> list[int]:
        """Tokenize plain text as llama.cpp does, without special tokens around it."""
        return self._cut(text)

    @cached_property
    def _cut(self) -> Cut:
        return cut_of(lambda name: self._field(f"tokenizer.ggml.{name}"))

    def _field(self, key: str) -> Any:
        field = self._file.get_field(key)
        return None if field is None else field.contents()
