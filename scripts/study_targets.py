"""Which sparse targets train the best student per byte: all schemes side by side on the same batches.

    python -m scripts.study_targets prepare --out study          # text and tokenizer, on any machine
    python -m scripts.study_targets run --out study --device cuda
    python -m scripts.study_targets plot --out study             # docs/targets.svg and a table

`prepare` gathers the docstrings of every installed Python package and trains a byte-level BPE of the real
vocabulary size on them. `run` trains one teacher, then, for each seed, one student per scheme in lockstep: the
same initial weights, batches and steps, so that schemes are compared in pairs. A sampled target is a function
of its block, as in a cache: a block seen again has the same draw.

Shape legend: B blocks, T positions, C positions of a chunk, V vocabulary, D width.
"""

from __future__ import annotations

import json
import math
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import tyro
from torch import Tensor

from pipeline.sparsify import SparseTargets as HostTargets
from pipeline.sparsify import sparsify
from storage.hashing import hash_permutation, hash_uniform
from storage.shard import ZSTD_LEVEL, ipc_write_options
from storage.soft_targets import SoftTargetRows, encode, schema
from student.losses.fused_head import HeadLoss, fused_head_loss
from student.losses.targets import SparseTargets
from student.model import choose_device

EOS = "<|endoftext|>"
MANTISSA_BITS = 6


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """One comparison. The defaults take about ten minutes on a large GPU."""

    out: Path = Path("study")
    """Directory with the text, and where results go."""
    name: str = "main"
    """Name of the results file."""
    device: str = "cpu"
    schemes: tuple[str, ...] = ()
    """Names of schemes; empty runs all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 800
    batch_blocks: int = 64
    block_size: int = 128
    learning_rate: float = 1e-3
    beta2: float = 0.95
    layers: int = 4
    width: int = 256
    teacher_layers: int = 12
    teacher_width: int = 768
    teacher_steps: int = 3000


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way to turn the teacher's log-probabilities into a target.

    gradient(logits_CV of the student, logp_CV of the teacher, uniforms [C, 64], labels_C) → ∂loss/∂logits.
    stored_bytes: bytes per token of what would be stored, by a function of held-out log-probabilities.
    """

    name: str
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    stored_bytes: Callable[[Tensor, Tensor], float] | None


def main() -> None:
    """Prepare, run or plot."""
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "run": run, "plot": plot}, description=__doc__)


# ---- text and teacher ----------------------------------------------------------------------------------------


def prepare(out: Path = Path("study"), vocab_size: int = 50257, max_megabytes: float = 40.0) -> None:
    """Gather text and tokenize it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from pipeline.stdlib_corpus import docstring_documents, stdlib_documents

    documents = [*stdlib_documents(), *docstring_documents(Path(sysconfig.get_paths()["purelib"]))]
    order = hash_permutation(len(documents), 0)
    chosen, size = [], 0
    for index in order:
        if size < max_megabytes * 1e6:
            chosen.append(documents[index])
            size += len(documents[index])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(chosen, trainer)
    ids = [np.array([*encoding.ids, 0], dtype=np.uint16) for encoding in tokenizer.encode_batch(chosen)]
    out.mkdir(parents=True, exist_ok=True)
    tokens = np.concatenate(ids)
    np.save(out / "tokens.npy", tokens)
    facts = {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_documents": len(chosen),
        "num_tokens": len(tokens),
        "num_characters": size,
    }
    (out / "text.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts))


def _blocks(out: Path, block_size: int) -> tuple[Tensor, Tensor]:
    """Training and held-out blocks [N, T + 1]; the last twentieth of the documents is held out."""
    tokens = torch.from_numpy(np.load(out / "tokens.npy").astype(np.int64))
    blocks = tokens[: len(tokens) // (block_size + 1) * (block_size + 1)].view(-1, block_size + 1)
    num_train = int(len(blocks) * 0.95)
    return blocks[:num_train], blocks[num_train : num_train + 512]


def _gpt2(vocab_size: int, layers: int, width: int, block_size: int, seed: int, device: torch.device) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_positions=block_size, n_embd=width, n_layer=layers, n_head=width // 64,
            activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # the fastest backward pass there at this length
    return model.to(device)


def _train_teacher(config: StudyConfig, blocks: Tensor, vocab_size: int, device: torch.device) -> Any:
    path = config.out / "teacher.pt"
    model = _gpt2(vocab_size, config.teacher_layers, config.teacher_width, config.block_size, 0, device)
    if path.is_file():
        model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    labels = HeadLoss(divergence="forward_kl", unbiased=False, temperature=1.0, soft_weight=0.0, label_weight=1.0)
    for step, batch in enumerate(_batches(blocks, config.batch_blocks * 2, seed=100, steps=config.teacher_steps)):
        _set_rate(optimizer, step, config.teacher_steps, 6e-4)
        ids = blocks[batch].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            hidden = model.base_model(ids[:, :-1]).last_hidden_state.flatten(0, 1)
            targets = SparseTargets.labels_only(ids[:, 1:].reshape(-1))
            loss = fused_head_loss(hidden, model.lm_head.weight, targets, labels)[0] / len(hidden)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            _say(f"teacher step {step}: {float(loss.detach()):.3f}")
    torch.save(model.state_dict(), path)
    return model.eval()


def _batches(blocks: Tensor, batch_blocks: int, *, seed: int, steps: int) -> Iterator[Tensor]:
    """Block indices of each step: whole epochs, shuffled."""
    per_epoch = len(blocks) // batch_blocks
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == 0:
            order = torch.from_numpy(hash_permutation(len(blocks), seed, epoch))
        yield order[place * batch_blocks : (place + 1) * batch_blocks]


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float) -> None:
    warmup = max(1, steps // 20)
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = peak * ((step + 1) / warmup if step < warmup else cosine)


# ---- schemes -------------------------------------------------------------------------------------------------


def _dense_gradient(logits_CV: Tensor, weights_CV: Tensor) -> Tensor:
    """∂/∂z of −Σ q log s."""
    return torch.softmax(logits_CV, dim=1) * weights_CV.sum(1, keepdim=True) - weights_CV


def _at_ids(logp_CV: Tensor, ids_CK: Tensor, weights_CK: Tensor) -> Tensor:
    return torch.zeros_like(logp_CV).scatter_add(1, ids_CK, weights_CK)


def _round(logprobs: Tensor) -> Tensor:
    """storage.bit_rounding on the device."""
    bits = logprobs.half().view(torch.int16).int() & 0xFFFF
    dropped = 10 - MANTISSA_BITS
    rounded = (bits + (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)) >> dropped << dropped
    return rounded.to(torch.int16).view(torch.float16).float()


def _labels_only() -> Scheme:
    def gradient(logits_CV: Tensor, logp_CV: Tensor, uniforms: Tensor, labels_C: Tensor) -> Tensor:
        return _dense_gradient(
            logits_CV, _at_ids(logp_CV, labels_C[:, None], torch.ones_like(labels_C[:, None]).float())
        )

    return Scheme(name="ce", gradient=gradient, stored_bytes=None)


def _full() -> Scheme:
    def gradient(logits_CV: Tensor, logp_CV: Tensor, uniforms: Tensor, labels_C: Tensor) -> Tensor:
        return _dense_gradient(logits_CV, logp_CV.exp())

    return Scheme(name="full", gradient=gradient, stored_bytes=None)


def _top_k(k: int, *, renormalised: bool) -> Scheme:
    def gradient(logits_CV: Tensor, logp_CV: Tensor, uniforms: Tensor, labels_C: Tensor) -> Tensor:
        top_CK, ids_CK = logp_CV.topk(k, dim=1)
        p_CK = _round(top_CK).exp()
        if renormalised:
            return _dense_gradient(logits_CV, _at_ids(logp_CV, ids_CK, p_CK / p_CK.sum(1, keepdim=True)))
        # ∂/∂z of the divergence with one bucket: s − p on the head, s (1 − r / s_tail) elsewhere.
        s_CV = torch.softmax(logits_CV, dim=1)
        s_CK = s_CV.gather(1, ids_CK)
        tail_C1 = s_CV.scatter(1, ids_CK, 0.0).sum(1, keepdim=True)
        r_C1 = (1 - p_CK.sum(1, keepdim=True)).clamp(min=0)
        return (s_CV * (1 - r_C1 / tail_C1)).scatter(1, ids_CK, s_CK - p_CK)

    name = f"topk_{'renorm' if renormalised else 'bucket'}_{k}"
    return Scheme(name=name, gradient=gradient, stored_bytes=lambda logp, u: _our_bytes(logp, u, k, None))


def _random_sampling(draws: int) -> Scheme:
    """Random-sampling KD (Anshumann et al., ACL 2025): draws with replacement, each worth 1 / draws."""

    def drawn(logp_CV: Tensor, uniforms: Tensor) -> Tensor:
        running_CV = logp_CV.exp().cumsum(1, dtype=torch.float64)
        points = uniforms[:, :draws].contiguous() * running_CV[:, -1:]
        return torch.searchsorted(running_CV, points, right=True).clamp(max=logp_CV.shape[1] - 1)

    def gradient(logits_CV: Tensor, logp_CV: Tensor, uniforms: Tensor, labels_C: Tensor) -> Tensor:
        ids = drawn(logp_CV, uniforms)
        return _dense_gradient(logits_CV, _at_ids(logp_CV, ids, torch.full(ids.shape, 1 / draws, device=ids.device)))

    def stored_bytes(logp_CV: Tensor, uniforms: Tensor) -> float:
        ids = drawn(logp_CV, uniforms).cpu().numpy()
        unique = [np.unique(row, return_counts=True) for row in ids]
        columns = (
            np.concatenate([row for row, _ in unique]).astype(np.uint16),
            np.concatenate([counts for _, counts in unique]).astype(np.uint8),
            np.array([len(row) for row, _ in unique], dtype=np.uint8),
        )
        codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
        return float(sum(len(codec.compress(c.tobytes())) for c in columns) / len(ids))

    return Scheme(name=f"random_sampling_{draws}", gradient=gradient, stored_bytes=stored_bytes)


def _sampled_tail(top_k: int, denominator: int) -> Scheme:
    def gradient(logits_CV: Tensor, logp_CV: Tensor, uniforms: Tensor, labels_C: Tensor) -> Tensor:
        found = sparsify(
            logp_CV, labels_C, uniforms[:, 0], top_k=top_k, tail_weight=1 / denominator, temperatures=(1.0,)
        )
        head_CK = _round(found.head_logprobs).exp() * found.is_head
        weights = torch.cat([head_CK, found.is_drawn.float() / denominator], dim=1)
        ids = torch.cat([found.head_ids, found.tail_ids], dim=1)
        return _dense_gradient(logits_CV, _at_ids(logp_CV, ids, weights))

    name = f"tail_{denominator}_top_{top_k}"
    return Scheme(
        name=name, gradient=gradient, stored_bytes=lambda logp, u: _our_bytes(logp, u, top_k, 1 / denominator)
    )


def _fitted_curve(k: int, exact: int, degree: int, bytes_per_token: float) -> Scheme:
    """Top-k with `exact` values and a polynomial in rank for the rest, renormalised, as DistillKit stores it.

    Our own reconstruction from the published sizes (312 bytes at k = 128, 114 at k = 50), fitted in float64
    and so without the conditioning trouble of the original.
    """

    def gradient(logits_CV: Tensor, logp_CV: Tensor, uniforms: Tensor, labels_C: Tensor) -> Tensor:
        top_CK, ids_CK = logp_CV.topk(k, dim=1)
        rank = torch.linspace(-1, 1, k - exact, device=logp_CV.device, dtype=torch.float64)
        basis = torch.stack([rank**d for d in range(degree + 1)], dim=1)
        projection = basis @ torch.linalg.pinv(basis)
        fitted = (top_CK[:, exact:].double() @ projection.T).float()
        p_CK = torch.softmax(torch.cat([top_CK[:, :exact], fitted], dim=1), dim=1)
        return _dense_gradient(logits_CV, _at_ids(logp_CV, ids_CK, p_CK))

    return Scheme(name=f"fitted_curve_{k}", gradient=gradient, stored_bytes=lambda logp, u: bytes_per_token)


def all_schemes() -> list[Scheme]:
    """Every scheme of the comparison."""
    return [
        _labels_only(),
        _full(),
        *[_top_k(k, renormalised=True) for k in (12, 50)],
        *[_top_k(k, renormalised=False) for k in (12, 50)],
        *[_random_sampling(draws) for draws in (12, 50)],
        *[_sampled_tail(0, denominator) for denominator in (8, 16, 32, 64)],
        *[_sampled_tail(16, denominator) for denominator in (16, 32, 64)],
        _fitted_curve(128, 16, 5, 312.0),
        _fitted_curve(50, 1, 2, 114.0),
    ]


def _our_bytes(logp_CV: Tensor, uniforms: Tensor, top_k: int, tail_weight: float | None) -> float:
    """Bytes per token of ids, logprobs and sizes as our own shards store them."""
    block_size = 128
    labels = torch.zeros(len(logp_CV), dtype=torch.int64, device=logp_CV.device)
    found = sparsify(
        logp_CV, labels, uniforms[:, 0], top_k=top_k, tail_weight=tail_weight, temperatures=(1.0,)
    ).flatten()
    return column_bytes(found, logp_CV.shape[1], block_size, ("head_size", "tail_size", "ids", "logprobs"))


def column_bytes(found: HostTargets, vocab_size: int, block_size: int, names: tuple[str, ...]) -> float:
    """Compressed bytes per target of some columns, in record batches of 16 rows."""
    num_rows = len(found.head_size) // block_size
    shape = (num_rows, block_size)
    rows = SoftTargetRows(
        row_id=np.arange(num_rows),
        input_ids=np.zeros((num_rows, block_size + 1), dtype=np.int64),
        segment_lengths=[np.array([block_size + 1])] * num_rows,
        head_size=found.head_size.reshape(shape),
        tail_size=found.tail_size.reshape(shape),
        ids=found.ids,
        logprobs=found.logprobs,
        tail_logprob=found.tail_logprob.reshape(shape),
        entropy=found.entropy.reshape(shape),
        label_logprob=found.label_logprob.reshape(shape),
        tempered_tail_logmass={},
    )
    batch = encode(rows, schema(vocab_size, block_size), MANTISSA_BITS).select(list(names))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema, options=ipc_write_options()) as writer:
        for start in range(0, num_rows, 16):
            writer.write_batch(batch.slice(start, 16))
    return float(sink.getvalue().size / (num_rows * block_size))


# ---- students ------------------------------------------------------------------------------------------------


class _Student:
    """A student with its optimiser, its averaged weights, and the gradient that gathers chunk by chunk."""

    def __init__(self, scheme: Scheme, config: StudyConfig, vocab_size: int, seed: int, device: torch.device) -> None:
        self.scheme = scheme
        self.model = _gpt2(vocab_size, config.layers, config.width, config.block_size, seed, device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, config.beta2), weight_decay=0.1, fused=True
        )
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def begin(self, input_ids: Tensor) -> None:
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=input_ids.is_cuda):
            self.hidden_PD = self.model.base_model(input_ids).last_hidden_state.flatten(0, 1)
        self.grad_PD = torch.empty_like(self.hidden_PD)
        self.grad_VD = torch.zeros_like(self.model.lm_head.weight)

    def add_chunk(self, part: slice, logp_CV: Tensor, uniforms: Tensor, labels_C: Tensor) -> None:
        weight_VD, hidden_CD = self.model.lm_head.weight.detach(), self.hidden_PD[part].detach()
        if hidden_CD.is_cuda:
            weight_VD, hidden_CD = weight_VD.bfloat16(), hidden_CD.bfloat16()
        logits_CV = (hidden_CD @ weight_VD.T).float()
        grad_CV = self.scheme.gradient(logits_CV, logp_CV, uniforms, labels_C).to(weight_VD.dtype)
        self.grad_PD[part] = (grad_CV @ weight_VD).to(self.grad_PD.dtype)
        self.grad_VD += grad_CV.T @ hidden_CD

    def finish(self, step: int, config: StudyConfig) -> None:
        num_positions = len(self.hidden_PD)
        self.optimizer.zero_grad()
        self.hidden_PD.backward(self.grad_PD / num_positions)
        weight = self.model.lm_head.weight
        weight.grad = self.grad_VD / num_positions + (weight.grad if weight.grad is not None else 0)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        _set_rate(self.optimizer, step, config.steps, config.learning_rate)
        self.optimizer.step()
        decay = min(0.99, (step + 1) / (step + 10))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [parameters[n].detach() for n in self.average], 1 - decay)


def _chunk_positions(vocab_size: int, device: torch.device) -> int:
    return 4096 if device.type == "cuda" else max(32, (8 << 20) // vocab_size)


@torch.no_grad()
def _teacher_logprobs(teacher: Any, hidden_CD: Tensor) -> Tensor:
    weight = teacher.lm_head.weight
    if hidden_CD.is_cuda:
        return torch.log_softmax((hidden_CD.bfloat16() @ weight.bfloat16().T).float(), dim=1)
    return torch.log_softmax(hidden_CD @ weight.T, dim=1)


def _uniforms(blocks: Tensor, block_size: int, seed: int, device: torch.device) -> Tensor:
    """64 uniforms per position [B·T, 64], a function of the block."""
    rows = blocks.numpy()[:, None, None]
    values = hash_uniform(seed, 7, rows, np.arange(block_size)[None, :, None], np.arange(64)[None, None])
    return torch.from_numpy(values.reshape(-1, 64)).to(device)


def _train_seed(
    config: StudyConfig, teacher: Any, train: Tensor, held_out: Tensor, vocab_size: int, seed: int
) -> dict[str, dict[str, float]]:
    device = next(teacher.parameters()).device
    schemes = [s for s in all_schemes() if not config.schemes or s.name in config.schemes]
    students = [_Student(scheme, config, vocab_size, seed, device) for scheme in schemes]
    chunk = _chunk_positions(vocab_size, device)
    started = time.monotonic()
    for step, batch in enumerate(_batches(train, config.batch_blocks, seed=seed, steps=config.steps)):
        ids = train[batch].to(device)
        labels_P = ids[:, 1:].reshape(-1)
        uniforms = _uniforms(batch, config.block_size, seed, device)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            teacher_PD = teacher.base_model(ids[:, :-1]).last_hidden_state.flatten(0, 1)
        for student in students:
            student.begin(ids[:, :-1])
        with torch.no_grad():
            for start in range(0, len(labels_P), chunk):
                part = slice(start, start + chunk)
                logp_CV = _teacher_logprobs(teacher, teacher_PD[part])
                for student in students:
                    student.add_chunk(part, logp_CV, uniforms[part], labels_P[part])
        for student in students:
            student.finish(step, config)
        if step % 100 == 0:
            _say(f"{config.name} seed {seed} step {step}: {time.monotonic() - started:.0f} s")
    return {s.scheme.name: _evaluate(s, teacher, held_out, chunk) for s in students}


@torch.no_grad()
def _evaluate(student: _Student, teacher: Any, held_out: Tensor, chunk: int) -> dict[str, float]:
    """Dense KL from the teacher, perplexity and calibration on held-out blocks, of final and averaged weights."""
    found = _measure(student.model, teacher, held_out, chunk)
    student.model.load_state_dict(student.average, strict=False)
    averaged = _measure(student.model, teacher, held_out, chunk)
    return found | {f"averaged_{name}": value for name, value in averaged.items()}


@torch.no_grad()
def _measure(model: Any, teacher: Any, held_out: Tensor, chunk: int) -> dict[str, float]:
    device = next(teacher.parameters()).device
    kl, nll, count = 0.0, 0.0, 0
    confidence, is_right = [], []
    for blocks in torch.split(held_out, 64):
        ids = blocks.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            hidden_PD = model.base_model(ids[:, :-1]).last_hidden_state.flatten(0, 1)
            teacher_PD = teacher.base_model(ids[:, :-1]).last_hidden_state.flatten(0, 1)
        labels_P = ids[:, 1:].reshape(-1)
        for start in range(0, len(labels_P), chunk):
            part = slice(start, start + chunk)
            logs_CV, logp_CV = _teacher_logprobs(model, hidden_PD[part]), _teacher_logprobs(teacher, teacher_PD[part])
            kl += float((logp_CV.exp() * (logp_CV - logs_CV)).sum())
            nll -= float(logs_CV.gather(1, labels_P[part, None]).sum())
            best_logprob, best = logs_CV.max(1)
            confidence.append(best_logprob.exp().cpu())
            is_right.append((best == labels_P[part]).float().cpu())
        count += len(labels_P)
    error = _calibration_error(torch.cat(confidence), torch.cat(is_right))
    return {"kl_nats": kl / count, "perplexity": math.exp(nll / count), "calibration_error": error}


def _calibration_error(confidence: Tensor, is_right: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) of the most probable token."""
    index = (confidence * bins).long().clamp(max=bins - 1)
    total = 0.0
    for b in range(bins):
        chosen = index == b
        if chosen.any():
            total += float(chosen.float().mean() * (confidence[chosen].mean() - is_right[chosen].mean()).abs())
    return total


def run(config: Annotated[StudyConfig, tyro.conf.arg(name="")]) -> None:
    """Train the teacher and all students; results go to OUT/NAME.json after every seed."""
    device = choose_device(config.device)
    facts = json.loads((config.out / "text.json").read_text())
    vocab_size = int(facts["vocab_size"])
    train, held_out = _blocks(config.out, config.block_size)
    teacher = _train_teacher(config, train, vocab_size, device)
    chunk = _chunk_positions(vocab_size, device)
    measured = _measure(teacher, teacher, held_out, chunk)
    results: dict[str, Any] = {
        "text": facts,
        "settings": {k: v for k, v in vars(config).items() if k not in ("out", "seeds")},
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "teacher": measured | _teacher_entropy(teacher, held_out, chunk),
        "bytes_per_token": _stored_bytes(config, teacher, held_out, vocab_size),
        "seeds": {},
    }
    _say(json.dumps({"teacher": results["teacher"], "bytes": results["bytes_per_token"]}))
    for seed in config.seeds:
        results["seeds"][seed] = _train_seed(config, teacher, train, held_out, vocab_size, seed)
        (config.out / f"{config.name}.json").write_text(json.dumps(results, indent=1))
        for name, found in results["seeds"][seed].items():
            _say(
                f"{name:>22} KL {found['kl_nats']:.4f} ppl {found['perplexity']:.2f} "
                f"averaged KL {found['averaged_kl_nats']:.4f}"
            )


@torch.no_grad()
def _held_out_logprobs(teacher: Any, blocks: Tensor) -> Tensor:
    device = next(teacher.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        hidden_PD = teacher.base_model(blocks.to(device)[:, :-1]).last_hidden_state.flatten(0, 1)
    return _teacher_logprobs(teacher, hidden_PD)


def _teacher_entropy(teacher: Any, held_out: Tensor, chunk: int) -> dict[str, float]:
    logp = _held_out_logprobs(teacher, held_out[:64])
    return {"entropy_nats": float(-(logp.exp() * logp).sum(1).mean())}


def _stored_bytes(config: StudyConfig, teacher: Any, held_out: Tensor, vocab_size: int) -> dict[str, float]:
    """Payload of each scheme on 64 held-out blocks."""
    blocks = held_out[:64]
    logp = _held_out_logprobs(teacher, blocks)
    uniforms = _uniforms(torch.arange(len(blocks)), config.block_size, 0, logp.device)
    return {s.name: s.stored_bytes(logp, uniforms) for s in all_schemes() if s.stored_bytes is not None}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- results -------------------------------------------------------------------------------------------------


def plot(out: Path = Path("study"), name: str = "main", figure: Path = Path("docs/targets.svg")) -> None:
    """Draw quality against bytes and print a table in Markdown."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    results = json.loads((out / f"{name}.json").read_text())
    seeds = list(results["seeds"].values())
    print(_markdown(results, seeds))
    fig, axes = pyplot.subplots(figsize=(8, 5))
    families: dict[str, list[tuple[float, float, float, str]]] = {}
    for scheme, num_bytes in results["bytes_per_token"].items():
        if scheme in seeds[0]:
            values = [seed[scheme]["kl_nats"] for seed in seeds]
            family = (
                scheme.rstrip("0123456789").rstrip("_")
                if not scheme.startswith("tail")
                else "sampled tail, " + scheme.partition("top_")[2]
            )
            families.setdefault(family, []).append((num_bytes, float(np.mean(values)), float(np.std(values)), scheme))
    for family, points in families.items():
        points.sort()
        axes.errorbar(
            [p[0] for p in points], [p[1] for p in points], yerr=[p[2] for p in points], marker="o", label=family
        )
    for reference, style in (("ce", "--"), ("full", ":")):
        level = float(np.mean([seed[reference]["kl_nats"] for seed in seeds]))
        axes.axhline(level, color="black", linestyle=style, linewidth=1, label=f"{reference}: {level:.3f}")
    axes.set_xscale("log")
    axes.set_xlabel("stored bytes per token (ids, values, sizes)")
    axes.set_ylabel("held-out KL to the teacher, nats per token")
    axes.legend(fontsize=8)
    fig.tight_layout()
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure)


def _markdown(results: dict[str, Any], seeds: list[dict[str, Any]]) -> str:
    ce, full = (float(np.mean([seed[name]["kl_nats"] for seed in seeds])) for name in ("ce", "full"))
    lines = [
        "| scheme | bytes/token | KL nats/token | spread | gap closed | perplexity | calibration error "
        "| KL, averaged weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scheme in seeds[0]:
        columns = {k: np.array([seed[scheme][k] for seed in seeds]) for k in seeds[0][scheme]}
        kl = columns["kl_nats"]
        num_bytes = results["bytes_per_token"].get(scheme)
        lines.append(
            f"| {scheme} | {'' if num_bytes is None else f'{num_bytes:.1f}'} | {kl.mean():.4f} | {kl.std():.4f} "
            f"| {(ce - kl.mean()) / (ce - full):.1%} | {columns['perplexity'].mean():.2f} "
            f"| {columns['calibration_error'].mean():.4f} | {columns['averaged_kl_nats'].mean():.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
