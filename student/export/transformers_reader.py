"""Run an exported directory in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from student.export.logits import Logits


class TransformersReader:
    """A causal language model in the dtype that its directory states."""

    def __init__(self, directory: Path) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype="auto", trust_remote_code=False, local_files_only=True
        ).eval()
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self._past = None  # models make a cache of their own kind

    @torch.inference_mode()
    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read the next T ids; return their logits [T, V]."""
        output = self._model(input_ids=torch.tensor([input_ids]), past_key_values=self._past, use_cache=True)
        self._past = getattr(output, "past_key_values", None)
        logits_TV: Logits = output.logits[0].float().numpy()
        return logits_TV
