"""Load the teacher and the data source of a run, tokenize the text, and lay out the rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import PrecomputeConfig
from pipeline.corpus.tokenization import TokenizedCorpus, tokenize_corpus
from pipeline.corpus.tokenization_key import tokenization_key
from pipeline.errors import TokenBeyondVocabularyError
from pipeline.plan import make_producers
from pipeline.producers.producer import Producer
from pipeline.producers.table import PRODUCERS
from pipeline.sources.corpus import Corpus, open_corpus
from pipeline.teacher.loading import load_teacher
from pipeline.teacher.model import Teacher
from storage.errors import ConfigError
from storage.text.beginnings import beginning_ids


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The teacher and the source of a run. The text has not been read yet.

    beginning_ids: what every segment and prompt begins with.
    """

    config: PrecomputeConfig
    teacher: Teacher
    beginning_ids: tuple[int, ...]
    corpus: Corpus


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
    """Open the source for a loaded teacher.

    Raises NoSuchDataError, NoBosTokenError, TokenBeyondVocabularyError, EndBeyondVocabularyError, or ConfigError for
    settings that do not fit the teacher or the source.
    """
    begins = beginning_ids(teacher.tokenizer, config.bos)
    if begins != beginning_ids(teacher.tokenizer, "auto"):
        # The cache and its students get this tokenizer: it shall begin texts as they do, whoever uses it.
        teacher.tokenizer.add_bos_token = config.bos == "always"
    _require_fit(teacher, config, begins)
    return Loaded(config=config, teacher=teacher, beginning_ids=begins, corpus=open_corpus(config))


def lay_out(loaded: Loaded, work_dir: Path) -> Job:
    """Tokenize the text and lay out the rows of each kind. Store the tokens below `work_dir`.

    Raises DataError (for example NoPromptsError) or WriteRefusedError.
    """
    return with_producers(loaded, tokenize(loaded, work_dir))


def with_producers(loaded: Loaded, tokenized: TokenizedCorpus) -> Job:
    """Lay out the rows of each kind. Raises NoPromptsError or NoWantedTargetError."""
    producers = make_producers(loaded.teacher, tokenized, loaded.config)
    return Job(**vars(loaded), tokenized=tokenized, producers=producers)


def tokenize(loaded: Loaded, work_dir: Path) -> TokenizedCorpus:
    """Tokenize the text. Store the tokens below `work_dir`. Raises DataError or WriteRefusedError."""
    config, teacher, corpus = loaded.config, loaded.teacher, loaded.corpus
    return tokenize_corpus(
        corpus,
        teacher.tokenizer,
        config,
        vocab_size=teacher.vocab_size,
        beginning_ids=loaded.beginning_ids,
        context_length=teacher.context_length,
        work_dir=work_dir / tokenization_key(corpus, teacher.tokenizer, config, loaded.beginning_ids),
    )


def _require_fit(teacher: Teacher, config: PrecomputeConfig, begins: tuple[int, ...]) -> None:
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
