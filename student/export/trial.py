"""Run an export in its own runtime and compare it with its student."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.tensors.model_facts import context_length_of
from student.errors import DisagreementError
from student.export.agreement import Agreement, check_tokens, measure_agreement
from student.export.child import LoneReader
from student.export.config import ExportConfig
from student.export.held_out import Sequences
from student.export.worker import Speed
from student.model.loading import weights_bytes

_PROMPT_TOKENS = 8
_NEW_TOKENS = 64
_COLUMNS = ("", "bytes", "tokens/s", "resident MB", "libraries MB", "perplexity", "top-1 agreement", "KL nats/token")
_LIBRARIES = {"onnx": "transformers.js", "gguf": "gguf", "safetensors": "transformers"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Results of running an export.

    tolerance_nats: largest allowed KL, nats per token; file_bytes, student_bytes: size of the files with weights.
    """

    format: str
    quantize: str
    runtime: str
    tolerance_nats: float
    agreement: Agreement
    file_bytes: int
    student_bytes: int
    speed: Speed
    student_speed: Speed

    @property
    def library(self) -> str:
        """The library_name for a model card."""
        return _LIBRARIES[self.format]

    def as_dict(self) -> dict[str, Any]:
        """Return the results as nested dictionaries, for JSON."""
        return asdict(self)

    def verdict(self) -> str:
        """Return one line on how the export ran."""
        return (
            f"run by {self.runtime} it agrees with the student on {self.agreement.num_targets:,} held-out tokens "
            f"(allowed: KL {self.tolerance_nats:g} nats/token)"
        )

    def table(self) -> str:
        """Return a Markdown table, aligned for a terminal too, with a line for the student and one for the export."""
        cells = [_COLUMNS, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [[f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)] for line in cells]
        rule = [f"{'-' * (width - 1)}:" for width in widths]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])

    def _rows(self) -> list[tuple[str, ...]]:
        found = self.agreement
        return [
            (
                "student", f"{self.student_bytes:,}", *_speed_cells(self.student_speed),
                f"{found.student_perplexity:.3f}", "1", "0",
            ),
            (
                "exported", f"{self.file_bytes:,}", *_speed_cells(self.speed),
                f"{found.perplexity:.3f}", f"{found.top1_agreement:.4f}", f"{found.kl_nats:.2e}",
            ),
        ]  # fmt: skip


def run_trial(config: ExportConfig, model: Any, tokenizer: Any, exported: Path, sequences: Sequences) -> Trial:
    """Time greedy continuations of the first sequence, compare on all sequences, and time the student in the same way.

    Raises RuntimeFailedError when the runtime fails on the file, DisagreementError when the file computes something
    else than the student, OtherTokensError when it holds a tokenizer that cuts the text of the sequences otherwise.
    """
    prompt_ids = sequences[0][:_PROMPT_TOKENS].tolist()
    num_new = min(_NEW_TOKENS, context_length_of(model) - len(prompt_ids))
    with LoneReader(exported, config.out) as reader:
        speed = reader.speed(prompt_ids, num_new)
        agreement = measure_agreement(model, reader, sequences, quiet=config.quiet)
        if config.format == "gguf":
            check_tokens(tokenizer, reader, sequences, str(config.out))
        runtime = reader.runtime
    if not agreement.is_within(config.tolerance_nats):
        raise DisagreementError(str(config.out), agreement.kl_nats, config.tolerance_nats)
    with LoneReader(config.student, config.student) as reader:
        student_speed = reader.speed(prompt_ids, num_new)
    return Trial(
        format=config.format,
        quantize=config.quantize,
        runtime=runtime,
        tolerance_nats=config.tolerance_nats,
        agreement=agreement,
        file_bytes=weights_bytes(exported),
        student_bytes=weights_bytes(config.student),
        speed=speed,
        student_speed=student_speed,
    )


def _speed_cells(speed: Speed) -> tuple[str, str, str]:
    return f"{speed.tokens_per_second:.0f}", _megabytes(speed.resident_bytes), _megabytes(speed.library_bytes)


def _megabytes(num_bytes: int | None) -> str:
    return "—" if num_bytes is None else f"{num_bytes / 1e6:.0f}"
