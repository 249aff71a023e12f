"""Run a GGUF file in llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from student.export.logits import Logits

_FIRST_CONTEXT = 256  # tokens, more than a greedy continuation has


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log_nothing(level: int, text: bytes, data: object) -> None:
    """Drop llama.cpp's messages, which it would print on standard error."""


class LlamaReader:
    """Reads a sequence with llama.cpp on the CPU, with keys and values in float16, which is llama.cpp's default.

    A sequence that is read in pieces can have 256 tokens, one that is read at once as many as the model has places for.
    """

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(_log_nothing, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        # On some machines, q8_0 weights that are rearranged for AMX crash the process. The plain kernels run anywhere.
        model_params.use_extra_bufts = False
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the file")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._open_context(min(_FIRST_CONTEXT, llama_cpp.llama_model_n_ctx_train(self._model)))

    def _open_context(self, num_tokens: int) -> None:
        """Make room for a sequence of so many tokens. Its size, not the model's longest one, decides about memory."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = num_tokens
        params.n_threads = params.n_threads_batch = 1
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._num_places = num_tokens
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._num_seen = 0

    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read the next T ids; return their logits [T, V]."""
        num_new = len(input_ids)
        if num_new > self._num_places and self._num_seen == 0:
            llama_cpp.llama_free(self._context)
            self._open_context(num_new)
        batch = llama_cpp.llama_batch_init(num_new, 0, 1)
        try:
            batch.n_tokens = num_new
            for place, token in enumerate(input_ids):
                batch.token[place], batch.pos[place] = int(token), self._num_seen + place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
            status = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self._num_seen += num_new
        logits = llama_cpp.llama_get_logits(self._context)
        logits_TV: Logits = np.ctypeslib.as_array(logits, shape=(num_new, self._vocab_size)).copy()
        return logits_TV

    def tokenize(self, text: str) -> list[int]:
        """Tokenize plain text with llama.cpp's tokenizer, without special tokens around it."""
        content = text.encode()
        ids = (llama_cpp.llama_token * (len(content) + 1))()
        num_ids = llama_cpp.llama_tokenize(self._vocab, content, len(content), ids, len(ids), False, False)
        return list(ids[:num_ids])
