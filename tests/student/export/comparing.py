"""What an export is held against: PyTorch's logits, divergence in float64, and reading in pieces."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from student.export.readers import Logits, Reader, TextReader
from student.model.framing import Framing
from student.model.loading import load_student

NO_BOS = Framing(beginning_ids=(), end_ids=(0,))
TEXT = "The teacher ran once — naïve, it's true — and wrote\n\n  what it KNEW: 12345 times!  (日本語)\t"


def student_logits(directory: Path, ids: list[int]) -> Logits:
    """PyTorch's logits [T, V] behind each id."""
    with torch.inference_mode():
        logits: Logits = load_student(directory).eval()(input_ids=torch.tensor([ids])).logits[0].numpy()
    return logits


def open_gguf(reader: str, path: Path) -> TextReader:
    """Open a GGUF file with "numpy" or "llama.cpp"; skip the test when llama.cpp is not installed."""
    pytest.importorskip("gguf", reason="gguf is not installed (the extra export)")
    if reader == "numpy":
        from student.export.gguf.reader import GgufReader

        return GgufReader(path)
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra llama)")
    from student.export.gguf.llama_reader import LlamaReader

    return LlamaReader(path)


def kl_nats(expected: Logits, found: Logits) -> float:
    """Mean KL(expected‖found), in float64."""
    logp, logq = (torch.from_numpy(np.array(x)).double().log_softmax(1) for x in (expected, found))
    return float((logp.exp() * (logp - logq)).sum(1).mean())


def assert_steps_equal_a_whole(reader: Reader, ids: list[int], tolerance: float) -> None:
    """Reading in pieces of any size gives what reading at once gives."""
    reader.reset()
    whole = reader.read(ids)
    for cuts in ([1, 2, 3], [5], list(range(1, len(ids)))):
        reader.reset()
        edges = [0, *cuts, len(ids)]
        pieces = [reader.read(ids[start:end]) for start, end in pairwise(edges)]
        np.testing.assert_allclose(np.concatenate(pieces), whole, atol=tolerance)
