"""Texts that are read whole: ids are kept where keys would be, and texts of one length share a pass."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from storage.tensors.whole_texts import read_whole_texts


def test_every_text_is_read_whole_with_those_of_its_length() -> None:
    shapes: list[tuple[int, ...]] = []

    def last_of(ids_GL: Tensor) -> Tensor:
        shapes.append(tuple(ids_GL.shape))
        return torch.stack([ids_GL.sum(1), ids_GL[:, -1]], dim=1).double()

    cache = DynamicCache()
    ids, mask = torch.tensor([[0, 0, 5], [1, 2, 3], [0, 0, 7]]), torch.tensor([[0, 0, 1], [1, 1, 1], [0, 0, 1]])
    assert read_whole_texts(last_of, ids, mask, cache).tolist() == [[5, 5], [6, 3], [7, 7]]
    cache.batch_select_indices(torch.tensor([1, 0]))
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    assert read_whole_texts(last_of, torch.tensor([[4], [6]]), mask, cache).tolist() == [[10, 4], [11, 6]]
    assert shapes == [(2, 1), (1, 3), (1, 2), (1, 4)]
