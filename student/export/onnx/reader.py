"""Run an ONNX export in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from student.export.logits import Logits


class OnnxReader:
    """An ONNX graph that has keys and values as inputs and outputs."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._past_inputs = [i for i in self._session.get_inputs() if i.name.startswith("past_key_values.")]
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        # Shapes are [batch, heads, past, width]. A size that varies is a name instead of a number.
        self._past: list[Any] = [np.zeros((1, i.shape[1], 0, i.shape[3]), dtype=np.float32) for i in self._past_inputs]

    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read the next T ids; return their logits [T, V]."""
        ids_1T = np.array([input_ids], dtype=np.int64)
        num_past = self._past[0].shape[2]
        num_seen = num_past + ids_1T.shape[1]
        inputs = {
            "input_ids": ids_1T,
            "attention_mask": np.ones((1, num_seen), dtype=np.int64),
            "position_ids": np.arange(num_past, num_seen)[None],
        } | {i.name: past for i, past in zip(self._past_inputs, self._past, strict=True)}
        logits_1TV, *self._past = self._session.run(None, inputs)
        logits_TV: Logits = logits_1TV[0]
        return logits_TV
