"""The settings of a cut. Every field is a flag of teachonce-cut."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from pipeline.config import PrecomputeConfig
from storage.errors import ConfigError
from storage.remote.directory import require_local

By = Literal["even", "importance"]
_NUMBER = "(0|[1-9][0-9]{0,8})"
_LAYERS = re.compile(f"{_NUMBER}(,{_NUMBER})*,?")


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """Cut a smaller model out of a teacher, for a student to begin from."""

    teacher: Positional[Annotated[str, tyro.conf.arg(metavar="TEACHER")]]
    """Directory or hub id of a causal language model."""
    out: Path
    """Directory of the smaller model, which teachonce-student train takes as --preset."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="N|0,2,4")] = None
    """Number of layers to keep, chosen by --by, or their numbers from 0, with a comma. None keeps all."""
    keep_mlp: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 1.0
    """Share of the MLP neurons of each layer to keep: those with the largest mean absolute activation in the text.
    GPT-2, Llama, Mistral and Qwen."""
    keep_heads: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 1.0
    """Share of the attention heads of each layer to keep: those whose outputs have the largest mean norm. Heads that
    share keys stay together where the share allows it. Llama, Mistral and Qwen."""
    by: By = "even"
    """How --layers N chooses: evenly, the first and the last among them, or those that turn their input the most."""
    cache: str | None = None
    """Finished cache, directory or URL, whose blocks are the text that shows what matters; no tokenizing."""
    data: str | None = None
    """Text that shows what matters, as --data of teachonce-precompute."""
    text_column: str = "text"
    """Column with the text in --data."""
    document_separator: str | None = None
    """String that separates the documents of a plain text file in --data (\\n is a newline)."""
    block_size: int = 128
    """Tokens in a block of --data."""
    max_tokens: int = 65_536
    """Read at most this many tokens of the text."""
    revision: str | None = None
    """Revision of the teacher on the hub."""
    device: str = "auto"
    """Where the text is read: cpu, cuda, cuda:1, …; auto takes a GPU when there is one."""
    plan: bool = False
    """Print what is kept, parameters and bytes, before and after, and write nothing."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        require_local(self.out)
        for flag, share in (("--keep-mlp", self.keep_mlp), ("--keep-heads", self.keep_heads)):
            if not 0 < share <= 1:
                raise ConfigError(f"{flag} is {share}, expected a share above 0 and at most 1")
        self._check_layers()
        if self.layers is None and not self.cuts_width:
            raise ConfigError("nothing to cut: give --layers, --keep-mlp or --keep-heads")
        if self.cache is not None and self.data is not None:
            raise ConfigError("--cache and --data are both given; one text says what matters: leave one out")
        if self.needs_text and self.cache is None and self.data is None:
            what = "--by importance" if self.by == "importance" else "--keep-mlp and --keep-heads"
            raise ConfigError(f"{what}: only a text shows what matters; give --cache CACHE or --data D")
        if not self.needs_text and (self.cache or self.data):
            raise ConfigError("--cache and --data are read only for --by importance, --keep-mlp and --keep-heads")
        _ = self.run  # its settings are checked too

    def _check_layers(self) -> None:
        if self.layers is not None and not _LAYERS.fullmatch(self.layers):
            raise ConfigError(f"--layers is {self.layers!r}, expected a number of layers, or numbers as in 0,2,4")
        numbers = self.named_layers or ()
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        if twice:
            raise ConfigError(f"--layers {self.layers}: names layer {twice[0]} twice; a layer can be kept once")
        if self.layers == "0":
            raise ConfigError("--layers 0 keeps no layer; give at least 1, or 0, (with a comma) for the first alone")
        if self.by == "importance" and (self.layers is None or self.named_layers is not None):
            raise ConfigError("--by importance chooses layers: give --layers with their number, or leave out --by")

    @property
    def named_layers(self) -> tuple[int, ...] | None:
        """The layers that --layers names, ascending; None when it gives a number of layers, or nothing."""
        if self.layers is None or "," not in self.layers:
            return None
        return tuple(sorted(int(number) for number in self.layers.rstrip(",").split(",")))

    @property
    def cuts_width(self) -> bool:
        """Whether neurons or heads are left out."""
        return min(self.keep_mlp, self.keep_heads) < 1

    @property
    def needs_text(self) -> bool:
        """Whether importance has to be measured."""
        return self.by == "importance" or self.cuts_width

    @property
    def run(self) -> PrecomputeConfig:
        """The run that would read the same teacher and text for a cache."""
        return PrecomputeConfig(
            teacher=self.teacher,
            data=self.data or "stdlib",
            out=self.out,
            kinds=("soft_targets",),
            revision=self.revision,
            text_column=self.text_column,
            document_separator=self.document_separator,
            block_size=self.block_size,
            max_tokens=self.max_tokens,
            validation_fraction=0.0,
            device=self.device,
            quiet=self.quiet,
        )
