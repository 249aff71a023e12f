"""The teacher: any causal language model that transformers loads, split into body and head.

The body returns hidden states. The head returns float32 logits for one chunk of positions at a time, so that those of
all positions never exist together. A head that no formula explains is run by the model's own code.

Shape legend: N blocks, T positions, C positions of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import ContextTooShortError, LeakingTeacherError, UnknownHeadError
from storage.rows.segments import position_ids
from storage.tensors.isolation import find_isolation, is_rounding
from storage.tensors.model_facts import body_of, context_length_of, num_parameters
from storage.tensors.output_head import HeadCode, OutputHead, output_head_of, same_logits
from storage.tensors.packing import Isolation, isolated_hidden_states
from storage.tensors.whole_texts import read_whole_texts
from storage.text.ends import end_ids


class Reader:
    """What of a teacher decides how a text is tokenized.

    vocab_size: ids that it has rows for. context_length: tokens that it can read.
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int, context_length: int) -> None:
        self.tokenizer, self.vocab_size, self.context_length = tokenizer, vocab_size, context_length

    def require_context(self, setting: str, num_tokens: int) -> None:
        """Raise ContextTooShortError when `num_tokens` exceed the context length."""
        if num_tokens > self.context_length:
            raise ContextTooShortError(setting, num_tokens, self.context_length)


class Teacher(Reader):
    """A loaded teacher in evaluation mode on its device.

    isolation: how it runs packed blocks. reads_whole_texts: whether it reads a text anew for each token that it draws,
    because keys and values in a cache do not give what the whole text gives (see decoding/cache_check).
    """

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
        self.device = device
        self.dtype: torch.dtype = model.dtype
        self.weights_sha256 = weights_sha256
        self.weights_bytes = weights_bytes
        self.isolation = Isolation.PACKED
        self.reads_whole_texts = False
        self._body: nn.Module = body_of(model)
        head = output_head_of(model)
        self._head: OutputHead | HeadCode = HeadCode(model) if head is None else _in_float32(head)
        super().__init__(tokenizer, vocab_size=self._num_logits(), context_length=context_length_of(model))
        self.end_ids = end_ids(tokenizer, model, self.vocab_size)

    @property
    def num_parameters(self) -> int:
        """Number of parameters. Tied parameters count once."""
        return num_parameters(self.model)

    def hidden(self, input_ids_NT: NDArray[Any], segment_lengths: list[NDArray[np.int64]]) -> Tensor:
        """Return the last hidden states [N, T, D] of packed blocks: for each document what it gets alone."""
        positions = np.stack([position_ids(lengths)[: input_ids_NT.shape[1]] for lengths in segment_lengths])
        return isolated_hidden_states(
            self._body, self.to_device(input_ids_NT), self.to_device(positions), self.isolation
        )

    def last_hidden(self, input_ids_NT: Tensor, attention_mask_NT: Tensor, positions_NT: Tensor, cache: Any) -> Tensor:
        """Append left-padded tokens to a key-value cache and return the hidden state [N, D] of the last position."""
        if self.reads_whole_texts:
            return read_whole_texts(self.last_of_rows, input_ids_NT, attention_mask_NT, cache)
        output = self._body(
            input_ids=input_ids_NT,
            attention_mask=attention_mask_NT,
            position_ids=positions_NT,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def last_of_rows(self, input_ids_NL: Tensor) -> Tensor:
        """Return the hidden state [N, D] after the last token of texts of one length, without a cache."""
        hidden: Tensor = self._body(input_ids=input_ids_NL, use_cache=False).last_hidden_state[:, -1]
        return hidden

    def logits(self, hidden_CD: Tensor, buffer_CV: Tensor | None = None) -> Tensor:
        """Return float32 logits [C, V] of a chunk of hidden states. They may be stored in the float32 buffer_CV."""
        if isinstance(self._head, HeadCode):
            return self._head.logits(hidden_CD).float().contiguous()
        weight_VD = self._head.weight_VD
        if weight_VD.dtype == torch.float32:
            products_CV = torch.mm(hidden_CD.float(), weight_VD.T, out=buffer_CV)
        else:
            products_CV = torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32)
        return self._head.finish_(products_CV)

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

    def check_head(self, where: str) -> None:
        """Raise UnknownHeadError unless body and head together give the logits of the whole model on a few tokens.

        where: the teacher's directory or hub id, for the message.
        """
        ids = self.to_device(np.arange(8)[None] % self.vocab_size)
        with torch.inference_mode():
            expected = self.model(input_ids=ids, use_cache=False).logits[0].float()
            found = self.logits(self._body(input_ids=ids, use_cache=False).last_hidden_state[0])
        if not same_logits(found, expected):
            raise UnknownHeadError(where)

    def choose_isolation(self, block_size: int, where: str) -> None:
        """Find out how to run blocks of block_size tokens so that no document changes another's hidden states.

        where: as in check_head. Raises LeakingTeacherError when there is no way, because the teacher is not causal.
        """
        with torch.inference_mode():
            found = find_isolation(
                self._body,
                vocab_size=self.vocab_size,
                num_tokens=min(block_size, self.context_length),
                device=self.device,
            )
        if found is None:
            raise LeakingTeacherError(where)
        self.isolation = found

    def is_rounding(self, found_ND: Tensor, expected_ND: Tensor, again: Callable[[], Tensor]) -> bool:
        """Return whether rounding explains the difference of hidden states. again: computes the expected ones anew."""
        return is_rounding(self._body, found_ND, expected_ND, again)

    def _num_logits(self) -> int:
        if isinstance(self._head, OutputHead):
            return len(self._head.weight_VD)
        with torch.inference_mode():
            return int(self.model(input_ids=self.to_device(np.zeros((1, 1))), use_cache=False).logits.shape[-1])


def _in_float32(head: OutputHead) -> OutputHead:
    """Return a head whose products are float32: on a CPU by its weight, on a GPU by the product itself."""
    weight_VD = head.weight_VD.float() if head.weight_VD.device.type == "cpu" else head.weight_VD
    return replace(head, weight_VD=weight_VD, bias_V=None if head.bias_V is None else head.bias_V.float())
