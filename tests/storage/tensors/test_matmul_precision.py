"""The fast path of float32 products is taken only where it is exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from storage.tensors.matmul_precision import use_fast_matmul


@pytest.fixture(autouse=True)
def precision_as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_products_have_the_accuracy_of_float32_whatever_the_processor_does() -> None:
    use_fast_matmul()
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(300, 200, generator=generator) for _ in range(2))
    truth = a.double() @ b.double().T
    assert float(((a @ b.T).double() - truth).abs().max() / truth.abs().max()) < 1e-5


def test_bfloat16_numbers_lose_nothing_on_the_fast_path() -> None:
    use_fast_matmul(inputs_are_bfloat16=True)
    assert torch.get_float32_matmul_precision() == "medium"
