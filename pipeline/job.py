"""Load the teacher and the data source of a run, tokenize the text, and lay out the rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import PrecomputeConfig
from pipeline.corpus.parts.writing import TokenizationPlan
from pipeline.corpus.tokenization import TokenizedCorpus, tokenize_as_planned
from pipeline.corpus.tokenization_key import tokenization_key
from pipeline.errors import TokenBeyondVocabularyError
from pipeline.plan import make_producers
from pipeline.producers.producer import Producer
from pipeline.producers.table import PRODUCERS
from pipeline.sources.corpus import Corpus, open_corpus
from pipeline.teacher.loading import load_teacher
from pipeline.teacher.model import Reader, Teacher
from storage.errors import ConfigError
from storage.text.beginnings import beginning_ids


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The source of a run, and what decides how its text is tokenized. The text has not been read yet.

    beginning_ids: what every segment and prompt begins with.
    """

    config: PrecomputeConfig
    reader: Reader
    beginning_ids: tuple[int, ...]
    corpus: Corpus


@dataclass(frozen=True, kw_only=True)
class Loaded(Opened):
    """The teacher and the source of a run. The text has not been read yet."""

    teacher: Teacher


@dataclass(frozen=True, kw_only=True)
class Job(Loaded):
    """A run whose text is tokenized and whose rows are laid out."""

    tokenized: TokenizedCorpus
    producers: dict[str, Producer]


def load_teacher_and_source(config: PrecomputeConfig) -> Loaded:
    """Load the teacher and open the source. This takes seconds; reading the text may take hours.

    Raises TeacherError and the errors of open_source.
    """
    return open_source(load_teacher(config), config)


def open_source(teacher: Teacher, config: PrecomputeConfig) -> Loaded:
    """Open the source for a loaded teacher. Raises the errors of open_text."""
    return Loaded(**vars(open_text(teacher, config)), teacher=teacher)


def open_text(reader: Reader, config: PrecomputeConfig) -> Opened:
    """Open the source for what tokenizes it.

    Raises NoSuchDataError, NoBosTokenError, TokenBeyondVocabularyError, EndBeyondVocabularyError, or ConfigError for
    settings that do not fit the teacher or the source.
    """
    begins = beginning_ids(reader.tokenizer, config.bos)
    if begins != beginning_ids(reader.tokenizer, "auto"):
        # The cache and its students get this tokenizer: it shall begin texts as they do, whoever uses it.
        reader.tokenizer.add_bos_token = config.bos == "always"
    _require_fit(reader, config, begins)
    return Opened(config=config, reader=reader, beginning_ids=begins, corpus=open_corpus(config))


def lay_out(loaded: Loaded, work_dir: Path) -> Job:
    """Tokenize the text and lay out the rows of each kind. Store the tokens below `work_dir`.

    Raises DataError (for example NoPromptsError) or WriteRefusedError.
    """
    return with_producers(loaded, tokenize(loaded, work_dir))


def with_producers(loaded: Loaded, tokenized: TokenizedCorpus) -> Job:
    """Lay out the rows of each kind. Raises NoPromptsError or NoWantedTargetError."""
    producers = make_producers(loaded.teacher, tokenized, loaded.config)
    return Job(**vars(loaded), tokenized=tokenized, producers=producers)


def tokenize(opened: Opened, work_dir: Path) -> TokenizedCorpus:
    """Tokenize the text with all processes that share `work_dir`; store the tokens below it. Raises as lay_out."""
    return tokenize_as_planned(tokenization_of(opened), tokens_dir(opened, work_dir))


def tokenization_of(opened: Opened) -> TokenizationPlan:
    """Return what to tokenize, and how to store it."""
    return TokenizationPlan(
        corpus=opened.corpus,
        tokenizer=opened.reader.tokenizer,
        config=opened.config,
        vocab_size=opened.reader.vocab_size,
        beginning_ids=opened.beginning_ids,
        context_length=opened.reader.context_length,
    )


def tokens_dir(opened: Opened, work_dir: Path) -> Path:
    """Return where the tokens lie below `work_dir`: the same for the same text, tokenizer and settings."""
    return work_dir / tokenization_key(opened.corpus, opened.reader.tokenizer, opened.config, opened.beginning_ids)


def _require_fit(teacher: Reader, config: PrecomputeConfig, begins: tuple[int, ...]) -> None:
    """Raise TokenBeyondVocabularyError, ContextTooShortError or ConfigError when beginning or settings do not fit."""
    for token_id in begins:
        if token_id >= teacher.vocab_size:
            token = str(teacher.tokenizer.convert_ids_to_tokens(token_id))
            place = "the beginning of every text (--bos)"
            raise TokenBeyondVocabularyError(config.teacher, token, token_id, teacher.vocab_size, place)
    if config.block_size <= len(begins):
        raise ConfigError(
            f"--block-size is {config.block_size}, and every segment begins with {len(begins)} tokens (--bos); "
            f"expected at least {len(begins) + 1}"
        )
    if config.soft_targets.top_k > teacher.vocab_size:
        raise ConfigError(
            f"--soft-targets.top-k is {config.soft_targets.top_k}, the teacher's vocabulary has {teacher.vocab_size}"
        )
    teacher.require_context("--block-size", config.block_size)
    for kind, producer in PRODUCERS.items():
        if kind in config.kinds:
            teacher.require_context(*producer.context_needed(config, len(begins)))
