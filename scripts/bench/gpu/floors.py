"""The least time that arithmetic and memory leave to each pass over a model of GPT-2's shape.

A pass multiplies at most as fast as a large product does, and moves at least these bytes: its weights once, and each
float32 logit once out of the product and once into what follows.

Legend: L layers of width D, V vocabulary, B tokens of a pass, R rows that generate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scripts.bench import generate, loss, precompute, step
from scripts.bench.config import BenchConfig
from scripts.support.flops import forward_flops_per_token

_HALF_BYTES, _FLOAT_BYTES = 2, 4
# AdamW reads weight, gradient and two moments in float32, and writes the weight and the moments.
_UPDATE_BYTES = 7 * _FLOAT_BYTES
_BACKWARD = 3  # a forward and a backward pass multiply three times as much as a forward pass


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a token asks for: operations, and bytes moved in the device's memory.

    of: words of the comparison whose value of ours, in `unit`, is the pass's speed.
    """

    flops: float
    moved_bytes: float
    of: str
    unit: str
    tokens_per_s: Callable[[float], float]
    """Turns the measured value into tokens per second."""


def num_parameters(model: Mapping[str, int]) -> int:
    """Return the number of weights of a GPT-2 with tied embeddings, to a thousandth: 12 L D² + D (V + positions)."""
    width = model["n_embd"]
    return 12 * model["n_layer"] * width**2 + width * (model["vocab_size"] + model["n_positions"])


def precompute_work(config: BenchConfig) -> Work:
    """A pass of the teacher: 2 bytes of each weight per B tokens."""
    size = precompute.SIZES[config.size]
    return Work(
        flops=_forward(config.model, size.block_size),
        moved_bytes=_HALF_BYTES * num_parameters(config.model) / size.batch_tokens + _logit_bytes(config.model),
        of="sampled tail",
        unit="µs/token",
        tokens_per_s=lambda micros: 1e6 / micros,
    )


def loss_work(config: BenchConfig) -> Work:
    """Three products with the head; its float32 weight is read and its gradient written once per B tokens."""
    shape = loss.shape_of(config)
    return Work(
        flops=_BACKWARD * 2 * shape.vocab_size * shape.width,
        moved_bytes=2 * _FLOAT_BYTES * shape.vocab_size * (1 + shape.width / shape.positions),
        of="sampled tail",
        unit="s",
        tokens_per_s=lambda seconds: shape.positions / seconds,
    )


def step_work(config: BenchConfig) -> Work:
    """A training step: forward, backward and AdamW's update."""
    (shape,) = step.shapes_of(config)[:1]
    model, num_tokens = config.model | shape.gpt2, shape.batch_blocks * shape.block_size
    return Work(
        flops=_BACKWARD * _forward(model, shape.block_size),
        moved_bytes=_UPDATE_BYTES * num_parameters(model) / num_tokens + _logit_bytes(model),
        of="step",
        unit="s",
        tokens_per_s=lambda seconds: num_tokens / seconds,
    )


def generate_work(config: BenchConfig) -> Work:
    """A step of R rows reads 2 bytes of each weight, and of each key and value of the tokens so far."""
    size, model = generate.SIZES[config.size], config.model
    context = (size.longest_prompt + size.max_new_tokens) / 2
    keys_and_values = 2 * model["n_layer"] * model["n_embd"] * context
    weights = num_parameters(model) / size.batch_rows
    return Work(
        flops=_forward(model, round(context)),
        moved_bytes=_HALF_BYTES * (weights + keys_and_values) + _logit_bytes(model),
        of="texts of full length",
        unit="tokens/s",
        tokens_per_s=lambda rate: rate,
    )


WORK: dict[str, Callable[[BenchConfig], Work]] = {
    "precompute": precompute_work,
    "loss": loss_work,
    "step": step_work,
    "compiled": step_work,
    "generate": generate_work,
}


def _forward(model: Mapping[str, int], block_size: int) -> float:
    return forward_flops_per_token(model["n_layer"], model["n_embd"], model["vocab_size"], block_size)


def _logit_bytes(model: Mapping[str, int]) -> float:
    return 2 * _FLOAT_BYTES * model["vocab_size"]
