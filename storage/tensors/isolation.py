"""Find by trial how a model isolates documents, and tell a leak from rounding.

Shape legend: N blocks, T positions, P tokens of all documents, D width.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storage.tensors.memory import is_out_of_memory
from storage.tensors.packing import LONGEST_MASKED, Isolation, isolated_hidden_states

# Root mean square of a difference, as a share of the hidden state's own, that matters to no model: about 0.001 nats.
_NEGLIGIBLE = 1e-4
# Two kernels that round differently differed by up to 0.8 times this noise in bfloat16, and a leak of 0.1 nats by 2.3.
_MOST_NOISE = 1.5
_NOISE_SEEDS = (0, 1)
_SHORT_DOCUMENT = 3


@torch.no_grad()
def find_isolation(body: Any, *, vocab_size: int, num_tokens: int, device: torch.device) -> Isolation | None:
    """Return the fastest way to run documents so that each gets the hidden states that it gets alone.

    Compare two blocks of num_tokens, one of a single document and one of several short ones, with each document in a
    pass of its own. So lengths that a model's function depends on, such as the original context of a rotary scaling,
    are passed if the run passes them. The cost is that of some ten such blocks.

    Return None when a document's hidden states change with its last token, so that the model is not causal, or with the
    other rows of its pass. Return PACKED when they are NaN: then nothing can be compared.
    """
    lengths_of_blocks = [[num_tokens], _short_lengths(num_tokens)]
    ids = np.random.default_rng(0).integers(0, vocab_size, (2, num_tokens))
    ids_NT = torch.from_numpy(ids).to(device)
    positions_NT = torch.from_numpy(np.array([np.concatenate(list(map(np.arange, ls))) for ls in lengths_of_blocks]))
    documents = list(torch.split(ids_NT.flatten(), [length for ls in lengths_of_blocks for length in ls]))
    again = functools.partial(_alone, body, documents)
    expected_PD = again()
    if bool(expected_PD.isnan().any()):
        return Isolation.PACKED
    if not is_causal(body, documents[0], vocab_size):
        return None
    for isolation in _candidates(body, vocab_size=vocab_size, num_tokens=num_tokens, device=device):
        # Pad all rows to the longest: more than any pass of a run.
        share = None if isolation is Isolation.EQUAL_ROWS else 0.0
        run = functools.partial(
            isolated_hidden_states, body, ids_NT, positions_NT.to(device), isolation, shortest_share=share
        )
        found_NTD = unless_refused(run)
        if found_NTD is not None and is_rounding(body, found_NTD.flatten(0, 1), expected_PD, again):
            return isolation
    return None


def _candidates(body: Any, *, vocab_size: int, num_tokens: int, device: torch.device) -> list[Isolation]:
    """Return the ways to try, the fastest first.

    Longer blocks than LONGEST_MASKED run as rows even if they are PACKED. So a model must isolate documents both in
    packed blocks of that length, and in rows of num_tokens.
    """
    if num_tokens <= LONGEST_MASKED:
        return list(Isolation)
    shorter = find_isolation(body, vocab_size=vocab_size, num_tokens=LONGEST_MASKED, device=device)
    return list(Isolation) if shorter is Isolation.PACKED else [Isolation.ROWS, Isolation.EQUAL_ROWS]


@torch.no_grad()
def is_causal(body: Any, ids_T: Tensor, vocab_size: int) -> bool:
    """Return whether another last token leaves the hidden states before it as they are, but for rounding.

    Return True when they are NaN: then nothing can be compared.
    """
    changed_T = ids_T.clone()
    changed_T[-1] = (changed_T[-1] + 1) % vocab_size

    def before_last() -> Tensor:
        return _alone(body, [ids_T])[:-1]

    expected_TD = before_last()
    if bool(expected_TD.isnan().any()):
        return True
    return is_rounding(body, _alone(body, [changed_T])[:-1], expected_TD, before_last)


def is_rounding(body: nn.Module, found_PD: Tensor, expected_PD: Tensor, again: Callable[[], Tensor]) -> bool:
    """Return whether rounding in the run's dtype explains the difference between two hidden states at each position.

    again: computes expected_PD from `body` once more. Its results are multiplied by 1 ± half an ulp at random, module
    by module, as in Monte Carlo arithmetic (Parker 1997): what that changes is what another order of the same sums may
    change. Hidden states are compared rather than log-probabilities: the head multiplies leak and noise alike, and one
    root mean square over a whole position separates them better than the largest of V differences.
    """
    difference_P = _root_mean_square(found_PD, expected_PD)
    finite_PD = expected_PD.masked_fill(expected_PD.isinf(), 0.0)  # logits of −inf are no measure of the others
    allowed_P = _NEGLIGIBLE * _root_mean_square(finite_PD, torch.zeros_like(finite_PD))
    if bool((difference_P <= allowed_P).all()):
        return True
    noise_P = torch.zeros_like(difference_P)
    for seed in _NOISE_SEEDS:
        with _rounded_anew(body, seed):
            noise_P = torch.maximum(noise_P, _root_mean_square(again(), expected_PD))
    return bool((difference_P <= allowed_P + _MOST_NOISE * noise_P).all())


def unless_refused(run: Callable[[], Tensor]) -> Tensor | None:
    """Return run(), or None when the model raises because it cannot run in this way. Out of memory is raised."""
    try:
        return run()
    except (TypeError, ValueError, AttributeError, LookupError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return None


def _short_lengths(num_tokens: int) -> list[int]:
    """Return lengths of documents that fill a block: a very short one, two of equal length and the rest."""
    first = min(_SHORT_DOCUMENT, num_tokens)
    third = (num_tokens - first) // 3
    lengths = [first, third, third, num_tokens - first - 2 * third]
    return [length for length in lengths if length]


def _alone(body: Any, documents: list[Tensor]) -> Tensor:
    """Return the hidden states [P, D] of documents, each in a pass of its own."""
    return torch.cat([body(input_ids=ids_T[None], use_cache=False).last_hidden_state[0] for ids_T in documents])


def _root_mean_square(found_PD: Tensor, expected_PD: Tensor) -> Tensor:
    """Return the root mean square of the differences at each position [P], in float32; -inf equals -inf."""
    difference_PD = (found_PD.float() - expected_PD.float()).masked_fill(found_PD == expected_PD, 0.0)
    return difference_PD.square().mean(1).sqrt()


@contextlib.contextmanager
def _rounded_anew(body: nn.Module, seed: int) -> Iterator[None]:
    """Multiply what each module returns by random factors of 1 ± half an ulp of its dtype."""
    generators: dict[torch.device, torch.Generator] = {}

    def perturb(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        device = output.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        uniforms = torch.rand(output.shape, generator=generator, device=device)
        return (output.float() * (1 + torch.finfo(output.dtype).eps * (uniforms - 0.5))).to(output.dtype)

    hooks = [module.register_forward_hook(perturb) for module in body.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
