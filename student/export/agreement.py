"""The divergence of an exported file from its student, token by token, and of the ways in which they cut text.

Legend: T tokens of a sequence that have a next token, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage.progress import Progress
from storage.text.characters import CharacterTokenizer
from student.errors import BrokenStudentError, OtherTokensError
from student.export.child import LoneReader
from student.export.held_out import Sequences
from student.export.logits import Logits


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Means over num_targets tokens that have a next token.

    kl_nats: KL(student‖exported) per token, nats.
    top1_agreement: share of positions with the same most probable token.
    max_logit_difference: largest absolute difference of two logits.
    perplexity, student_perplexity: of the exported file and the student, on the same real next tokens.
    """

    num_targets: int
    kl_nats: float
    top1_agreement: float
    max_logit_difference: float
    perplexity: float
    student_perplexity: float

    def is_within(self, tolerance_nats: float) -> bool:
        """Whether the KL is at most tolerance_nats. A NaN is not."""
        return self.kl_nats <= tolerance_nats


@torch.inference_mode()
def measure_agreement(model: Any, reader: LoneReader, sequences: Sequences, *, quiet: bool) -> Agreement:
    """Compare student and exported file on every sequence, each read alone; the student runs in float32 in PyTorch.

    Raises BrokenStudentError when the student's logits are not finite.
    """
    parts = []
    with Progress(len(sequences), "compare", "texts", quiet=quiet) as bar:
        for ids_S in sequences:
            expected_TV = model(input_ids=torch.from_numpy(ids_S[None, :-1]), use_cache=False).logits[0].numpy()
            if not np.isfinite(expected_TV).all():
                raise BrokenStudentError(model.name_or_path)
            parts.append(compare(expected_TV, reader.logits(ids_S[:-1].tolist()), ids_S[1:]))
            bar.update(1)
    return pool(parts)


def check_tokens(tokenizer: Any, reader: LoneReader, sequences: Sequences, out: str) -> None:
    """Raise OtherTokensError when student and exported file cut the text of a sequence into different tokens.

    Special tokens are left out of the text, and spaces at its beginning: some tokenizers put a space there only where
    none is, and llama.cpp always does.
    """
    characters = CharacterTokenizer(tokenizer)
    for ids_S in sequences:
        text = tokenizer.decode(ids_S, skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip(" ")
        expected, found = characters.ids(text), reader.tokenize(text)
        if expected != found:
            raise OtherTokensError(out, *_difference(tokenizer, expected, found))


def _difference(tokenizer: Any, expected: list[int], found: list[int]) -> tuple[str, str]:
    """Return the tokens of two lists from the first that differs, at most three of each, as text."""
    start = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(map(len, (expected, found)))
    )
    first, second = (tokenizer.convert_ids_to_tokens(ids[start : start + 3]) for ids in (expected, found))
    return " ".join(map(str, first)), " ".join(map(str, second))


def compare(expected_TV: Logits, found_TV: Logits, label_ids_T: NDArray[np.int64]) -> Agreement:
    """Compare the logits for one sequence in float64: KL = Σ p (log p − log q), where p is the student's."""
    logp_TV, logq_TV = _log_softmax(expected_TV), _log_softmax(found_TV)
    rows = np.arange(len(label_ids_T))
    return Agreement(
        num_targets=len(label_ids_T),
        kl_nats=float((np.exp(logp_TV) * (logp_TV - logq_TV)).sum(axis=1).mean()),
        top1_agreement=float((expected_TV.argmax(axis=1) == found_TV.argmax(axis=1)).mean()),
        max_logit_difference=float(np.abs(expected_TV.astype(np.float64) - found_TV).max()),
        perplexity=math.exp(-logq_TV[rows, label_ids_T].mean()),
        student_perplexity=math.exp(-logp_TV[rows, label_ids_T].mean()),
    )


def pool(parts: list[Agreement]) -> Agreement:
    """Combine the agreements of several sequences. Every token has the same weight."""
    counts = np.array([part.num_targets for part in parts])

    def mean(values: list[float]) -> float:
        return float(np.dot(values, counts) / counts.sum())

    return Agreement(
        num_targets=int(counts.sum()),
        kl_nats=mean([part.kl_nats for part in parts]),
        top1_agreement=mean([part.top1_agreement for part in parts]),
        max_logit_difference=float(np.max([part.max_logit_difference for part in parts])),
        perplexity=math.exp(mean([math.log(part.perplexity) for part in parts])),
        student_perplexity=math.exp(mean([math.log(part.student_perplexity) for part in parts])),
    )


def _log_softmax(logits_TV: Logits) -> NDArray[np.float64]:
    shifted_TV = logits_TV.astype(np.float64) - logits_TV.max(axis=1, keepdims=True)
    logprobs_TV: NDArray[np.float64] = shifted_TV - np.log(np.exp(shifted_TV).sum(axis=1, keepdims=True))
    return logprobs_TV
