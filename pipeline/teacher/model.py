"""The teacher: any causal language model that transformers loads, split into body and head.

The body returns hidden states. The head returns float32 logits for one chunk of positions at a time, so that those of
all positions never exist together. Shape legend: N blocks, T positions, C positions of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import ContextTooShortError, LeakingTeacherError
from storage.rows.segments import position_ids
from storage.tensors.model_facts import context_length_of, num_parameters
from storage.tensors.packing import packed_hidden_states, packing_leak
from storage.text.ends import end_ids

# Rounding makes smaller relative differences than these between hidden states of a document alone and packed. A leak
# makes far larger ones.
_LEAK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
_HEAD_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 1.0, torch.float16: 0.25}


class Teacher:
    """A loaded teacher in evaluation mode on its device."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device,
        *,
        name: str,
        revision: str | None,
        weights_sha256: str,
        weights_bytes: int,
    ) -> None:
        self.name = name
        self.revision = getattr(model.config, "_commit_hash", None) or revision
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.dtype: torch.dtype = model.dtype
        self.weights_sha256 = weights_sha256
        self.weights_bytes = weights_bytes
        head = model.get_output_embeddings()
        self.vocab_size: int = head.weight.shape[0]
        self.end_ids = end_ids(tokenizer, model, self.vocab_size)
        self.context_length = context_length_of(model)
        self._body: nn.Module = model.base_model
        self._head_weight_VD: Tensor = head.weight
        self._head_bias_V: Tensor | None = getattr(head, "bias", None)
        if self.dtype != torch.float32 and device.type == "cpu":
            self._head_weight_VD = self._head_weight_VD.float()
        self._logits: Callable[[Tensor, Tensor | None], Tensor] = self._head_logits

    @property
    def num_parameters(self) -> int:
        """Number of parameters. Tied parameters count once."""
        return num_parameters(self.model)

    def hidden(self, input_ids_NT: NDArray[Any], segment_lengths: list[NDArray[np.int64]]) -> Tensor:
        """Return the last hidden states [N, T, D] of packed blocks. Each document attends only to itself."""
        positions = np.stack([position_ids(lengths)[: input_ids_NT.shape[1]] for lengths in segment_lengths])
        return packed_hidden_states(self._body, self.to_device(input_ids_NT), self.to_device(positions))

    def last_hidden(self, input_ids_NT: Tensor, attention_mask_NT: Tensor, positions_NT: Tensor, cache: Any) -> Tensor:
        """Append left-padded tokens to a key-value cache and return the hidden state [N, D] of the last position."""
        output = self._body(
            input_ids=input_ids_NT,
            attention_mask=attention_mask_NT,
            position_ids=positions_NT,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def logits(self, hidden_CD: Tensor, buffer_CV: Tensor | None = None) -> Tensor:
        """Return float32 logits [C, V] of a chunk of hidden states. They may be stored in the float32 buffer_CV."""
        return self._logits(hidden_CD, buffer_CV)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """Return an integer array as an int64 tensor on the device. The host does not wait for the copy to a GPU."""
        tensor = torch.from_numpy(array.astype(np.int64))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def mark_time(self) -> Callable[[], None]:
        """Return a function that waits until the device has finished all work that was queued before this call."""
        if self.device.type != "cuda":
            return lambda: None
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))
        return done.synchronize

    def require_context(self, setting: str, num_tokens: int) -> None:
        """Raise ContextTooShortError when `num_tokens` exceed the context length."""
        if num_tokens > self.context_length:
            raise ContextTooShortError(setting, num_tokens, self.context_length)

    def use_whole_model_if_head_is_more_than_linear(self) -> None:
        """Use the logits of the whole model if its head does more than a linear layer (scaling, soft caps)."""
        ids = self.to_device(np.arange(8)[None] % self.vocab_size)
        with torch.inference_mode():
            expected = self.model(input_ids=ids, use_cache=False).logits[0].float()
            found = self._head_logits(self._body(input_ids=ids, use_cache=False).last_hidden_state[0])
        if (expected - found).abs().max() > _HEAD_TOLERANCE_NATS[self.dtype]:
            self._body = _WholeModel(self.model)
            self._logits = _pass_through

    def check_isolation(self) -> None:
        """Raise LeakingTeacherError when hidden states of a packed document differ from those of the document alone."""
        with torch.inference_mode():
            difference = packing_leak(self.hidden, vocab_size=self.vocab_size, context_length=self.context_length)
        if difference > _LEAK_TOLERANCE[self.dtype]:
            raise LeakingTeacherError(self.name, difference)

    def _head_logits(self, hidden_CD: Tensor, buffer_CV: Tensor | None = None) -> Tensor:
        if self._head_weight_VD.dtype == torch.float32:
            logits_CV = torch.mm(hidden_CD.float(), self._head_weight_VD.T, out=buffer_CV)
        else:
            logits_CV = torch.mm(hidden_CD, self._head_weight_VD.T, out_dtype=torch.float32)
        return logits_CV if self._head_bias_V is None else logits_CV.add_(self._head_bias_V.float())


def _pass_through(logits_CV: Tensor, _: Tensor | None) -> Tensor:
    return logits_CV.float()


class _WholeModel(nn.Module):
    """A body that returns logits as hidden states, for models whose head cannot be called alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, **inputs: Any) -> Any:
        output = self._model(**inputs)
        output.last_hidden_state = output.logits
        return output
