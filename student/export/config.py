"""Settings of an export, and the largest divergence from the student for each format and quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from storage.errors import ConfigError
from storage.remote.directory import require_local

Format = Literal["onnx", "gguf", "safetensors"]
Quantize = Literal["none", "int8", "q8_0"]


# Largest mean KL(student‖exported), nats/token: several times that of students of these shapes (docs/export.md), and
# far below that of a wrong weight. Top-1 agreement has no limit: where two tokens are nearly equally probable, the last
# bit of a weight decides between them.
TOLERANCES_NATS: dict[tuple[Format, Quantize], float] = {
    ("onnx", "none"): 1e-6,  # the same float32 arithmetic in another order
    ("onnx", "int8"): 5e-3,  # 8 bits for weights and for the inputs of every product with weights
    ("gguf", "none"): 2e-5,  # weights in float16, like llama.cpp's keys, values and GELU table
    ("gguf", "q8_0"): 1e-3,  # 8 bits with a scale for every 32 weights
    ("safetensors", "none"): 2e-5,  # weights and arithmetic in float16
}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a student for another runtime, run the result on held-out text, and keep it only if it agrees."""

    student: Positional[Path]
    """Directory of the student."""
    out: Path
    """Directory to create; for gguf a file ending in .gguf."""
    format: Format
    """onnx (onnxruntime, browsers), gguf (llama.cpp), or safetensors (transformers)."""
    quantize: Quantize = "none"
    """onnx: none (float32) or int8; gguf: none (float16) or q8_0; safetensors: none (float16)."""
    cache: str | Path | None = None
    """Cache (directory or URL) with the validation blocks to run the exported file on."""
    text: Path | None = None
    """Or a UTF-8 file of held-out text, for students whose cache is not available."""
    max_tokens: int = 4096
    """Tokens of held-out text to compare on."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        require_local(self.out)
        if (self.format, self.quantize) not in TOLERANCES_NATS:
            served = "; ".join(f"{name} with {' or '.join(_quantizations(name))}" for name in _formats())
            raise ConfigError(f"--format {self.format} with --quantize {self.quantize}: expected {served}")
        if (self.cache is None) == (self.text is None):
            given = "neither --cache nor --text" if self.cache is None else "both --cache and --text"
            raise ConfigError(f"{given}: name one source of held-out text, for an export is run before it is kept")
        if self.max_tokens < 2:
            raise ConfigError(f"--max-tokens is {self.max_tokens}, expected at least 2")
        if (self.format == "gguf") != (self.out.suffix == ".gguf"):
            expected = "a file ending in .gguf" if self.format == "gguf" else "a directory, not a .gguf file"
            raise ConfigError(f"--out {self.out}: --format {self.format} makes {expected}")

    @property
    def tolerance_nats(self) -> float:
        """Largest mean KL(student‖exported) of this export, nats per token."""
        return TOLERANCES_NATS[self.format, self.quantize]


def _formats() -> list[Format]:
    return list(dict.fromkeys(name for name, _ in TOLERANCES_NATS))


def _quantizations(name: Format) -> list[Quantize]:
    return [quantize for other, quantize in TOLERANCES_NATS if other == name]
