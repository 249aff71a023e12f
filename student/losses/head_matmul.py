"""Run the output head chunk by chunk: compute logits, and turn their gradient into those of states, weight and bias.

Shape legend: P positions, C positions of a chunk, G rows of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from storage.tensors.output_head import OutputHead
from student.losses.core_threads import parts_of, run_parts

# Smaller chunks spend too much time on adding up the head's gradient; larger ones need more memory.
_CHUNK_POSITIONS = {"cpu": 512, "cuda": 4096}
# Bytes of rows that softmax_ passes over several times: half of a server core's private cache, all of a desktop core's.
_CACHE_BYTES_PER_THREAD = 1 << 20


def chunk_positions_on(device: torch.device) -> int:
    """Return the number of positions per chunk on this device."""
    return _CHUNK_POSITIONS.get(device.type, 512)


@dataclass(frozen=True, kw_only=True)
class HeadGradients:
    """Gradients with respect to hidden_PD, weight_VD and bias_V of a head; None for what needs none or is not there."""

    hidden_PD: Tensor
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def to_fill(cls, hidden_PD: Tensor, head: OutputHead) -> HeadGradients:
        """Return memory for the gradients. ChunkedHead.add_gradients writes hidden_PD and adds to the others."""
        return cls(
            hidden_PD=torch.empty_like(hidden_PD),
            weight_VD=_zeros_to_fill(head.weight_VD),
            bias_V=_zeros_to_fill(head.bias_V),
        )


def _zeros_to_fill(parameter: Tensor | None) -> Tensor | None:
    return torch.zeros_like(parameter) if parameter is not None and parameter.requires_grad else None


class ChunkedHead:
    """Logits of hidden states, in buffers that all chunks share.

    On a CPU, a new [C, V] tensor for every chunk would cost a third of a product's time in page faults. Products are
    computed in matmul_dtype. Logits are float64 for float64 input, else float32: the precision of the losses. Use this
    only where autograd does not record.
    """

    def __init__(self, hidden_PD: Tensor, head: OutputHead, *, matmul_dtype: torch.dtype, chunk_positions: int) -> None:
        self._matmul_dtype = matmul_dtype
        self._hidden_PD = hidden_PD.to(matmul_dtype)
        self._head = replace(head, weight_VD=head.weight_VD.to(matmul_dtype))
        self._chunk = max(1, min(chunk_positions, len(hidden_PD)))
        vocab_size, width = head.weight_VD.shape
        self._logits_CV = hidden_PD.new_empty((self._chunk, vocab_size), dtype=upcast(hidden_PD).dtype)
        self._capped_CV = None if head.cap_nats is None else torch.empty_like(self._logits_CV)
        self._parts = parts_of(vocab_size, self._logits_CV)
        self._grad_hidden_SCD = hidden_PD.new_empty((len(self._parts), self._chunk, width), dtype=matmul_dtype)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the positions of each chunk with their logits [C, V].

        The logits are valid until the next chunk. The caller may overwrite them.
        """
        for start in range(0, len(self._hidden_PD), self._chunk):
            positions = slice(start, start + self._chunk)
            logits_CV = self._logits_CV[: len(self._hidden_PD[positions])]
            run_parts(partial(self._write_logits, positions, logits_CV), self._parts)
            yield positions, logits_CV

    def add_gradients(self, positions: slice, grad_CV: Tensor, gradients: HeadGradients) -> None:
        """Write gradients.hidden_PD at `positions`, and add the chunk's part to the other gradients. Call this once.

        grad_CV: gradient with respect to the logits of the chunk yielded last, in their dtype. It may be overwritten.
        """
        run_parts(partial(self._add_gradients_of, positions, grad_CV, gradients), self._parts)
        run_parts(partial(self._write_hidden, gradients.hidden_PD[positions]), parts_of(len(grad_CV), grad_CV))

    def _write_logits(self, positions: slice, logits_CV: Tensor, ids: slice) -> None:
        head, logits_CI = self._head.rows(ids), logits_CV[:, ids]
        hidden_CD = self._hidden_PD[positions]
        if logits_CI.dtype == self._matmul_dtype:
            torch.mm(hidden_CD, head.weight_VD.T, out=logits_CI)
        else:
            logits_CI.copy_(hidden_CD @ head.weight_VD.T)
        head.finish_(logits_CI)
        if self._capped_CV is not None:
            self._capped_CV[: len(logits_CI), ids] = logits_CI

    def _write_hidden(self, grad_hidden_CD: Tensor, rows: slice) -> None:
        parts_SCD = self._grad_hidden_SCD[:, rows]
        grad_hidden_CD[rows] = parts_SCD.sum(0) if len(parts_SCD) > 1 else parts_SCD[0]

    def _add_gradients_of(self, positions: slice, grad_CV: Tensor, gradients: HeadGradients, ids: slice) -> None:
        """Add the part of these ids. Threads add to one hidden state only later, in the order of the ids."""
        head, grad_CI = self._head.rows(ids), grad_CV[:, ids]
        head.gradient_of_products_(grad_CI, None if self._capped_CV is None else self._capped_CV[: len(grad_CI), ids])
        if gradients.bias_V is not None:
            gradients.bias_V[ids].add_(grad_CI.sum(0))
        grad_CI = grad_CI.to(self._matmul_dtype)
        torch.mm(grad_CI, head.weight_VD, out=self._grad_hidden_SCD[self._parts.index(ids), : len(grad_CI)])
        if gradients.weight_VD is None:
            return
        hidden_CD, grad_weight_ID = self._hidden_PD[positions], gradients.weight_VD[ids]
        if grad_weight_ID.dtype == self._matmul_dtype:
            grad_weight_ID.addmm_(grad_CI.T, hidden_CD)
        else:
            grad_weight_ID.add_(grad_CI.T @ hidden_CD)


def softmax_(logits_CV: Tensor, mass_C1: Tensor | None = None) -> Tensor:
    """Overwrite logits z with mass · softmax(z), and return log Σ e^z [C, 1]. Without mass_C1, the mass is 1.

    A row that is −inf throughout becomes zeros, and its log Σ e^z is −inf. On a CPU, torch.logsumexp alone
    would take longer, and it would need a second [C, V].
    """
    if mass_C1 is None:
        mass_C1 = logits_CV.new_ones(len(logits_CV), 1)
    rows = _rows_in_cache(logits_CV)
    parts = zip(torch.split(logits_CV, rows), torch.split(mass_C1, rows), strict=True)
    return torch.cat([_softmax_of_rows_(logits_GV, mass_G1) for logits_GV, mass_G1 in parts])


def _softmax_of_rows_(logits_GV: Tensor, mass_G1: Tensor) -> Tensor:
    largest_G1 = logits_GV.amax(1, keepdim=True)
    largest_G1.masked_fill_(largest_G1 == -torch.inf, 0.0)
    sums_G1 = logits_GV.sub_(largest_G1).exp_().sum(1, keepdim=True)
    logits_GV.mul_(mass_G1 / sums_G1.masked_fill(sums_G1 == 0, 1.0))
    return largest_G1 + sums_G1.log()


def _rows_in_cache(values_CV: Tensor) -> int:
    """Return the number of rows that stay in the caches of a CPU's cores during several passes; on a GPU, all rows."""
    if values_CV.device.type != "cpu":
        return len(values_CV)
    row_bytes = values_CV.shape[1] * values_CV.element_size()
    return torch.get_num_threads() * max(1, _CACHE_BYTES_PER_THREAD // row_bytes)


def upcast(values: Tensor) -> Tensor:
    """Return float64 values as they are, and all others as float32."""
    return values if values.dtype == torch.float64 else values.float()


def matmul_dtype_of(hidden: Tensor) -> torch.dtype:
    """Return the dtype of the head's products: autocast's where autocast is on, else that of the hidden states."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
