"""The settings of a precompute run. Every field is a flag of teachonce-precompute."""

from __future__ import annotations

import dataclasses
import datetime
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipeline.flags import PLAN, DeviceMap, Dtype, Engine, OnBadRow, Only, Plan
from storage.errors import ConfigError
from storage.remote.directory import is_remote_url, require_local
from storage.rows.bit_rounding import FLOAT16_MANTISSA_BITS, LEAST_SCALAR_MANTISSA_BITS
from storage.text.beginnings import Bos

Kind = Literal["soft_targets", "samples", "beams"]

# Of 24 bytes a token this saves 1. Over a million tokens it moves the teacher's mean loss by 1 % of its standard error.
_SCALAR_MANTISSA_BITS = 6


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class SoftTargetsConfig:
    """Sparse next-token distributions (storage/FORMAT.md, "soft_targets")."""

    top_k: int = 1
    """Number of largest probabilities to keep exactly at every position; may be 0 when the tail is sampled."""
    top_p: float = 1.0
    """Of the top_k largest, keep only the fewest whose sum reaches this probability; 1 keeps all top_k."""
    tail_weight: float | None = 1 / 32
    """Probability that each sampled tail entry stands for; a smaller value gives more entries.
    Probabilities of at least this value are kept exactly. None stores the tail as one number."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures at which students may train; a sampled tail is drawn at the first."""
    mantissa_bits: int = 6
    """Mantissa bits kept of each float16 logprob; fewer bits compress better, 10 keeps all."""
    scalar_mantissa_bits: int | None = None
    """The same for the logprobs of the tail's mass and of the real next token, one of each per position. None keeps 6,
    or mantissa_bits if that is more; a cache begun with other bits goes on with them."""

    def __post_init__(self) -> None:
        _require(self.top_k >= 0, f"--soft-targets.top-k is {self.top_k}, expected 0 or more")
        _require(
            self.top_k > 0 or self.tail_weight is not None,
            "--soft-targets.top-k 0 keeps nothing without a sampled tail; set --soft-targets.tail-weight",
        )
        _require(0 < self.top_p <= 1, f"--soft-targets.top-p is {self.top_p}, expected above 0 and at most 1")
        _require(
            self.tail_weight is None or 0 < self.tail_weight < 1,
            f"--soft-targets.tail-weight is {self.tail_weight}, expected a probability between 0 and 1, or None",
        )
        _require(
            len(self.temperatures) > 0 and all(0 < t < math.inf for t in self.temperatures),
            f"--soft-targets.temperatures is {self.temperatures}, expected positive numbers",
        )
        _require(
            len({f"{t:g}" for t in self.temperatures}) == len(self.temperatures),
            f"--soft-targets.temperatures is {self.temperatures}, expected no two alike",
        )
        _require(
            1 <= self.mantissa_bits <= FLOAT16_MANTISSA_BITS,
            f"--soft-targets.mantissa-bits is {self.mantissa_bits}, expected 1 to {FLOAT16_MANTISSA_BITS}",
        )
        _require(
            self.scalar_mantissa_bits is None
            or LEAST_SCALAR_MANTISSA_BITS <= self.scalar_mantissa_bits <= FLOAT16_MANTISSA_BITS,
            f"--soft-targets.scalar-mantissa-bits is {self.scalar_mantissa_bits}, "
            f"expected {LEAST_SCALAR_MANTISSA_BITS} to {FLOAT16_MANTISSA_BITS}, or None",
        )

    @property
    def kept_scalar_bits(self) -> int:
        """Mantissa bits that the logprobs of tail and label keep."""
        return self.scalar_mantissa_bits or max(self.mantissa_bits, _SCALAR_MANTISSA_BITS)


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Texts drawn from the teacher."""

    num_prompts: int = 1024
    """Number of prompts, both splits together; fewer when the text does not have enough."""
    per_prompt: int = 2
    """Number of texts to draw for each prompt."""
    prompt_tokens: int = 16
    """Length in tokens of a prompt taken from the text."""
    prompt_column: str | None = None
    """Column with prompts (text, or a list of chat messages) to use instead of beginnings of documents. None with
    conversations or pairs takes the messages before the last answer, or the prompts."""
    max_new_tokens: int = 64
    """Maximum length of a completion in tokens."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Draw from the nucleus, the smallest set of tokens whose summed probability reaches this value."""

    def __post_init__(self) -> None:
        _require(min(self.num_prompts, self.per_prompt) >= 1, "--samples needs at least one prompt and one text")
        _require(min(self.prompt_tokens, self.max_new_tokens) >= 1, "--samples lengths must be at least 1 token")
        _require(0 < self.temperature < math.inf, f"--samples.temperature is {self.temperature}, expected more than 0")
        _require(0 < self.top_p <= 1, f"--samples.top-p is {self.top_p}, expected more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class BeamsConfig:
    """The teacher's best candidates for a prompt, by beam search."""

    num_prompts: int = 512
    """Number of prompts, both splits together; fewer when the text does not have enough."""
    num_beams: int = 4
    """Number of beams in the search."""
    num_candidates: int = 4
    """Number of candidates to keep for each prompt, at most num_beams."""
    prompt_tokens: int = 16
    """Length in tokens of a prompt taken from the text."""
    prompt_column: str | None = None
    """Column with prompts (text, or a list of chat messages) to use instead of beginnings of documents. None with
    conversations or pairs takes the messages before the last answer, or the prompts."""
    max_new_tokens: int = 32
    """Maximum length of a candidate in tokens."""
    length_penalty: float = 1.0
    """score = summed logprob / length^length_penalty; 0 compares plain sums."""

    def __post_init__(self) -> None:
        _require(self.num_prompts >= 1, "--beams.num-prompts must be at least 1")
        _require(min(self.prompt_tokens, self.max_new_tokens) >= 1, "--beams lengths must be at least 1 token")
        _require(
            math.isfinite(self.length_penalty), f"--beams.length-penalty is {self.length_penalty}, expected a number"
        )
        _require(
            2 <= self.num_candidates <= self.num_beams,
            f"--beams.num-candidates is {self.num_candidates}, expected 2 to --beams.num-beams ({self.num_beams})",
        )


def stated_settings(settings: SoftTargetsConfig | SamplesConfig | BeamsConfig) -> dict[str, Any]:
    """Return the settings of a kind as plan.json states them."""
    stated = dataclasses.asdict(settings)
    if isinstance(settings, SoftTargetsConfig):
        stated["scalar_mantissa_bits"] = settings.kept_scalar_bits
        if settings.kept_scalar_bits == FLOAT16_MANTISSA_BITS:
            del stated["scalar_mantissa_bits"]  # caches from before it existed keep all bits and do not state it
    return stated


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Run a teacher once over a text and write its outputs to a cache."""

    teacher: str
    """Directory or hub id of a causal language model."""
    data: str
    """stdlib, a text, jsonl, parquet or Arrow file (.gz, .zst too), a directory of them or one that datasets saved,
    or a hub id (name:config)."""
    out: str | Path
    """Directory of the cache, or a URL that fsspec can write (s3://…); a rerun with the same settings resumes."""
    kinds: tuple[Kind, ...] = ("soft_targets", "samples", "beams")
    """Kinds of rows to write."""
    revision: str | None = None
    """Revision of the teacher on the hub."""
    text_column: str = "text"
    """Column with the text in jsonl, parquet and hub data."""
    messages_column: str | None = None
    """Column with conversations, lists of messages with role and content, to use instead of texts. The teacher teaches
    what the assistant says (docs/texts.md)."""
    prompt_column: str | None = None
    """Column with prompts to use, with --completion-column, instead of texts."""
    completion_column: str | None = None
    """Column with what follows the prompts of --prompt-column; the teacher teaches this alone."""
    chat_template: Path | None = None
    """File with the Jinja template that renders conversations; None takes the tokenizer's own."""
    chat_date: Annotated[str | None, tyro.conf.arg(metavar="YYYY-MM-DD")] = None
    """Date for chat templates that print today's; None takes the day on which the cache was begun."""
    on_bad_row: OnBadRow = "stop"
    """Stop at a row without a usable conversation or pair, or skip and count such rows."""
    document_separator: str | None = None
    """String that separates the documents of a plain text file (\\n is a newline); None: each file is one document.
    A control token such as <|endoftext|> that stands in a text is characters unless it is named here."""
    bos: Bos = "auto"
    """Whether every document, further piece of one and prompt begins with BOS; auto: as the tokenizer does (--plan)."""
    block_size: int = 128
    """Targets in a block."""
    max_tokens: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Stop reading the text after this many tokens; None reads all."""
    validation_fraction: float = 0.05
    """Share of the documents to hold out; with too few documents, that share of the text is held out at its end."""
    seed: int = 0
    """Seed of all random draws."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU when there is one."""
    device_map: DeviceMap | None = None
    """auto spreads a teacher that is larger than a GPU over all GPUs, then memory, then disk, by layers (extra
    accelerate). None puts the whole teacher on --device."""
    dtype: Dtype = "auto"
    """Number format in which the teacher computes; auto is bfloat16 on a GPU and float32 elsewhere."""
    batch_tokens: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Tokens per forward pass; None takes 8192, or for soft targets on a GPU as many as fit into its free memory.
    When memory runs out, passes over blocks are halved."""
    shard_tokens: int = 2_097_152
    """Tokens per shard; the default is about 80 MB of soft targets. A killed run loses only its unfinished shards."""
    engine: Engine = "local"
    """local runs in this process; ray starts workers, one per GPU or per share of the CPUs (docs/cluster.md)."""
    num_workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of workers of --engine ray; None takes one per GPU, or one per machine when no GPU is used."""
    address: str | None = None
    """Address of a Ray cluster: auto (the one on this machine) or HOST:PORT. None starts a Ray for this run alone."""
    only: Only | None = None
    """tokenize makes the tokens and stops, without weights or a GPU; the same line without it goes on from there."""
    tokenizer_threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Threads of a fast tokenizer in each process; None: one for each core, or with Ray for each of the worker's."""
    plan: Annotated[Plan | None, PLAN] = None
    """Print tokens, bytes, time and the break-even against online distillation, and write nothing. A large text is not
    read: a sample of it gives figures with intervals, in seconds. --plan exact tokenizes all of it."""
    work_dir: Path | None = None
    """For an --out that is a URL: directory for tokenized text and shards not sent yet; None takes the user's cache
    directory. An --out that is a directory keeps such files inside it."""
    quiet: bool = False
    """Show no progress."""
    soft_targets: SoftTargetsConfig = field(default_factory=SoftTargetsConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    beams: BeamsConfig = field(default_factory=BeamsConfig)

    def __post_init__(self) -> None:
        _require(len(self.kinds) > 0, "--kinds is empty, expected some of soft_targets, samples, beams")
        _require(self.block_size >= 2, f"--block-size is {self.block_size}, expected at least 2")
        _require(
            0 <= self.validation_fraction < 1,
            f"--validation-fraction is {self.validation_fraction}, expected at least 0 and below 1",
        )
        sizes = (self.batch_tokens or 1, self.shard_tokens)
        _require(min(sizes) >= 1 and self.batch_tokens != 0, "--batch-tokens and --shard-tokens must be at least 1")
        _require(self.max_tokens is None or self.max_tokens >= 2, "--max-tokens must be at least 2")
        _require(self.tokenizer_threads is None or self.tokenizer_threads >= 1, "--tokenizer-threads must be 1 or more")
        _require(self.only is None or not self.plan, "--only and --plan exclude each other; give one of them")
        _require(self.device_map is None or self.device == "auto", "--device-map chooses devices; leave out --device")
        self._check_engine()
        self._check_columns()
        self._take_prompts_from_documents()
        if self.work_dir is not None:
            require_local(self.work_dir)
        _require(self.work_dir is None or is_remote_url(str(self.out)), "--work-dir is for an --out that is a URL")
        separator = self.document_separator or ""
        _require(separator == separator.encode(errors="replace").decode(), "--document-separator is not UTF-8")
        _require(self.document_separator != "", "--document-separator is empty; leave it out for one document a file")

    @property
    def prompt_settings(self) -> dict[str, SamplesConfig | BeamsConfig]:
        """Settings of each kind whose rows continue prompts, also of kinds that are not in --kinds."""
        return {"samples": self.samples, "beams": self.beams}

    @property
    def document_columns(self) -> dict[str, str]:
        """The columns that make up a document, by their flags: of texts, of conversations, or of pairs."""
        if self.messages_column is not None:
            return {"--messages-column": self.messages_column}
        if self.prompt_column is not None and self.completion_column is not None:
            return {"--prompt-column": self.prompt_column, "--completion-column": self.completion_column}
        return {"--text-column": self.text_column}

    @property
    def marks_wanted(self) -> bool:
        """Whether only some tokens are taught: those of the assistant, or of completions."""
        return self.messages_column is not None or self.prompt_column is not None

    @property
    def may_hold_chats(self) -> bool:
        """Whether a column of the run may hold conversations."""
        return self.marks_wanted or any(settings.prompt_column for settings in self.prompt_settings.values())

    def _take_prompts_from_documents(self) -> None:
        """Without a prompt column, let samples and beams continue what comes before an answer, not half a question."""
        if not self.marks_wanted:
            return
        column = next(iter(self.document_columns.values()))
        for kind, settings in self.prompt_settings.items():
            if kind in self.kinds and settings.prompt_column is None:
                object.__setattr__(self, kind, dataclasses.replace(settings, prompt_column=column))

    def _check_columns(self) -> None:
        _require(
            (self.prompt_column is None) == (self.completion_column is None),
            "--prompt-column and --completion-column belong together; give both, or neither",
        )
        given = {
            "--text-column": self.text_column != "text",
            "--messages-column": self.messages_column is not None,
            "--prompt-column": self.prompt_column is not None,
        }
        found = [flag for flag, is_given in given.items() if is_given]
        _require(len(found) < 2, f"{' and '.join(found)} exclude each other; a row is one document: give one of them")
        try:
            datetime.date.fromisoformat(self.chat_date or "2026-01-01")
        except ValueError as error:
            raise ConfigError(f"--chat-date is {self.chat_date}, expected YYYY-MM-DD") from error

    def _check_engine(self) -> None:
        if self.engine == "local":
            _require(self.num_workers is None and self.address is None, "--num-workers and --address need --engine ray")
            return
        _require(self.device_map is None, "--device-map needs --engine local: Ray gives each worker one GPU")
        _require(
            self.num_workers is None or self.num_workers >= 1,
            f"--num-workers is {self.num_workers}, expected at least 1",
        )
        _require(
            self.device in ("auto", "cpu", "cuda"),
            f"--device {self.device}: Ray gives each worker its GPU; expected auto, cpu or cuda with --engine ray",
        )
