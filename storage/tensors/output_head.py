"""What stands between a model's last hidden states and its logits.

Most heads are a matrix, some with a bias, a scale or a soft cap. `output_head_of` reads these numbers from the model's
configuration and believes them only if they give the model's own logits. `HeadCode` runs the head's own code, whatever
it does.

Shape legend: C positions, D width, V vocabulary, R rows of a made-up head.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from storage.tensors.model_facts import bodies_of

# Names that configurations of transformers give to a factor of the logits (or to its inverse), and to a soft cap.
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# Largest difference of a row of logits, relative to its largest entry: in float64, and of the real weights in their own
# dtype, which bfloat16 rounds in several steps.
_TOLERANCE, _ROUNDED_TOLERANCE = 1e-6, 0.05
# Sizes of made-up products: from far below any soft cap to far above.
_TRIAL_SIZES = (0.1, 1.0, 10.0, 100.0, 1000.0)
_TRIAL_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """A head with logits z = cap · tanh(scale · (h Wᵀ + b) / cap), or scale · (h Wᵀ + b) without a cap.

    weight_VD: W; bias_V: b, None for none; cap_nats: z stays within ± cap_nats, None for no cap (Gemma 2, section 2).
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap_nats: float | None = None

    def rows(self, ids: slice) -> OutputHead:
        """Return the head of these ids alone."""
        bias_V = None if self.bias_V is None else self.bias_V[ids]
        return replace(self, weight_VD=self.weight_VD[ids], bias_V=bias_V)

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Return logits [C, V] in the dtype of the hidden states. Use this only where autograd does not record."""
        return self.finish_(hidden_CD @ self.weight_VD.T.to(hidden_CD.dtype))

    def finish_(self, products_CV: Tensor) -> Tensor:
        """Overwrite products h Wᵀ with logits, and return them."""
        if self.bias_V is not None:
            products_CV.add_(self.bias_V)
        if self.scale != 1.0:
            products_CV.mul_(self.scale)
        if self.cap_nats is not None:
            products_CV.div_(self.cap_nats).tanh_().mul_(self.cap_nats)
        return products_CV

    def gradient_of_products_(self, grad_CV: Tensor, logits_CV: Tensor | None) -> Tensor:
        """Overwrite ∂L/∂z with ∂L/∂(h Wᵀ + b) = ∂L/∂z · scale · (1 − (z / cap)²), and return it.

        logits_CV: z, needed if there is a cap. It is overwritten too.
        """
        if self.scale != 1.0:
            grad_CV.mul_(self.scale)
        if self.cap_nats is not None:
            assert logits_CV is not None
            grad_CV.mul_(logits_CV.div_(self.cap_nats).square_().neg_().add_(1.0))
        return grad_CV


class HeadCode:
    """The model's own code between body and logits: its forward pass, with given hidden states in place of the body."""

    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        """Run the body on one token. Its output is the form in which the model's code gets hidden states."""
        self._model = model
        self._bodies = bodies_of(model)
        self._output = self._bodies[0](input_ids=self._ids(1), use_cache=False)

    @property
    def width(self) -> int:
        """Width D of the hidden states."""
        return int(self._output.last_hidden_state.shape[-1])

    def logits(self, hidden_CD: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return logits [C, V]. weights: tensors by name that take the place of the model's parameters."""
        self._output.last_hidden_state = hidden_CD[None]
        inputs = {"input_ids": self._ids(len(hidden_CD)), "use_cache": False}
        with contextlib.ExitStack() as stack:
            for body in self._bodies:
                stack.enter_context(_returning(body, self._output))
            output = torch.func.functional_call(self._model, dict(weights or {}), kwargs=inputs)
        logits_CV: Tensor = output.logits[0]
        return logits_CV

    def _ids(self, num_tokens: int) -> Tensor:
        return torch.zeros((1, num_tokens), dtype=torch.int64, device=self._model.device)


@contextlib.contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return `output`, whatever it is called with."""
    before = module.__dict__.get("forward")  # a hook of another library may be in this place
    module.__dict__["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


Form = dict[str, Any]  # the fields scale and cap_nats of an OutputHead
# The form of each model that was asked for, found once: training asks in every pass.
_FORMS: WeakKeyDictionary[Any, Form | None] = WeakKeyDictionary()


def output_head_of(model: Any) -> OutputHead | None:
    """Return the head of a causal language model; None when no OutputHead gives its logits.

    The model's own code decides, twice. With a made-up head in float64, whose products lie below and above any cap, the
    logits must be equal up to rounding, so the weights of the day hide nothing. With the real weights they must be
    equal up to the rounding of their dtype, so masked or missing rows of the vocabulary are noticed.
    """
    module = model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        return None
    plain = OutputHead(weight_VD=weight, bias_V=getattr(module, "bias", None))
    if model not in _FORMS:
        was_training = model.training
        model.eval()  # dropout would draw random numbers that the training needs
        try:
            _FORMS[model] = _find_form(model, module, plain)
        finally:
            model.train(was_training)
    form = _FORMS[model]
    return None if form is None else replace(plain, **form)


def same_logits(found_CV: Tensor, expected_CV: Tensor, tolerance: float = _ROUNDED_TOLERANCE) -> bool:
    """Return whether logits differ by no more than `tolerance`, relative to the largest finite entry of each row.

    Infinities and NaN must be equal.
    """
    if found_CV.shape != expected_CV.shape:
        return False
    largest_C1 = expected_CV.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().amax(1, keepdim=True)
    scale_C1 = largest_C1.masked_fill(largest_C1 == 0, 1.0)
    return torch.allclose(found_CV / scale_C1, expected_CV / scale_C1, rtol=0.0, atol=tolerance, equal_nan=True)


@torch.no_grad()
def _find_form(model: Any, module: nn.Module, plain: OutputHead) -> Form | None:
    code = HeadCode(model)
    if plain.weight_VD.shape[1] != code.width:
        return None
    hidden_CD = _trial_hidden(code.width).to(plain.weight_VD)
    own_CV = code.logits(hidden_CD).float()
    forms = [form for form in _forms(model.config) if same_logits(_logits(plain, form, hidden_CD).float(), own_CV)]
    if not forms:
        return None
    prefix = next(name for name, part in model.named_modules() if part is module)
    made_up = _made_up_head(plain)
    hidden_CD = _trial_hidden(code.width).to(made_up.weight_VD)
    weights = {f"{prefix}.weight": made_up.weight_VD}
    if made_up.bias_V is not None:
        weights[f"{prefix}.bias"] = made_up.bias_V
    own_CR = code.logits(hidden_CD, weights).to(hidden_CD)
    return next((form for form in forms if same_logits(_logits(made_up, form, hidden_CD), own_CR, _TOLERANCE)), None)


def _logits(plain: OutputHead, form: Form, hidden_CD: Tensor) -> Tensor:
    return replace(plain, **form).logits(hidden_CD)


def _forms(config: Any) -> Iterator[Form]:
    """Yield every scale and cap that the configuration may mean, the plainest first."""
    config = config.get_text_config()
    scales = [x for number in _numbers(config, _SCALES) for x in (number, 1 / number)]
    for scale, cap_nats in itertools.product([1.0, *scales], [None, *_numbers(config, _CAPS)]):
        yield {"scale": scale, "cap_nats": cap_nats}


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    """Return the positive finite numbers among these settings."""
    values = (getattr(config, name, None) for name in names)
    return [float(value) for value in values if isinstance(value, int | float) and 0 < value < math.inf]


def _trial_hidden(width: int) -> Tensor:
    """Return float64 hidden states [C, D], whose products with rows of length 1 are about as large as _TRIAL_SIZES."""
    unit_CD = torch.randn(len(_TRIAL_SIZES), width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return unit_CD * torch.tensor(_TRIAL_SIZES, dtype=torch.float64)[:, None]


def _made_up_head(real: OutputHead) -> OutputHead:
    """Return a head of R rows of about length 1, with a bias if the real one has it."""
    device, width = real.weight_VD.device, real.weight_VD.shape[1]
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    generator = torch.Generator().manual_seed(1)
    weight_RD = torch.randn(_TRIAL_ROWS, width, generator=generator) / width**0.5
    bias_R = None if real.bias_V is None else torch.randn(_TRIAL_ROWS, generator=generator).to(device, dtype)
    return OutputHead(weight_VD=weight_RD.to(device, dtype), bias_V=bias_R)
