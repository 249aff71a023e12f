"""What a run is made of: teacher, text and layout, loaded, and the plan that they begin."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.corpus.sources import Corpus, open_corpus
from pipeline.corpus.tokenization import PACKING_RECIPE, TokenizedCorpus, tokenize_corpus
from pipeline.errors import TokenizerMismatchError
from pipeline.plan import RECORD_BATCH_ROWS, Begun, make_producers, planned_shards, shard_ranges
from pipeline.producers.producer import Producer
from pipeline.producers.table import PRODUCERS
from pipeline.teacher.model import Teacher, load_teacher
from storage.disk.files import refusals
from storage.disk.hashing import directory_sha256
from storage.errors import ConfigError
from storage.reading.cache import TOKENIZER_DIR
from storage.records.identity import MAX_SHARDS, CacheIdentity
from storage.rows.columns import token_type
from storage.writing.destinations import Destination, open_destination


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run needs, loaded."""

    config: PrecomputeConfig
    teacher: Teacher
    corpus: Corpus
    tokenized: TokenizedCorpus
    producers: dict[str, Producer]


def load_job(
    config: PrecomputeConfig, work_dir: Path, require_facts: Callable[[dict[str, Any]], object] = lambda facts: None
) -> Job:
    """Load teacher and text and lay out the rows; tokens are kept below `work_dir`.

    require_facts: called with what the cache's identity will say, as far as that is known before the text is read,
    which may take hours.
    """
    teacher = load_teacher(config)
    _require_context(teacher, config)
    corpus = open_corpus(config)
    require_facts(_facts(config, teacher, corpus))
    dtype = token_type(teacher.vocab_size).to_pandas_dtype()
    tokenized = tokenize_corpus(
        corpus,
        teacher.tokenizer,
        config,
        dtype=dtype,
        context_length=teacher.context_length,
        work_dir=work_dir / _tokenization_key(corpus, teacher, config),
    )
    producers = make_producers(teacher, tokenized, config)
    return Job(config=config, teacher=teacher, corpus=corpus, tokenized=tokenized, producers=producers)


def begin(job: Job, destination: Destination) -> Begun:
    """Publish plan and tokenizer, or check that they are those of this run; raises CacheMismatchError."""
    _require_few_shards(job)
    saved_tokenizer = _save_tokenizer(job.teacher, destination.work_dir)
    identity = destination.begin_or_resume(_identity(job, directory_sha256(saved_tokenizer)))
    tokenizer_files = {f"{TOKENIZER_DIR}/{path.name}": path for path in sorted(saved_tokenizer.iterdir())}
    for name, path in tokenizer_files.items():
        destination.add_file(name, path.read_bytes())
    return Begun(
        identity=identity,
        shards=list(shard_ranges(job.producers, job.config.shard_tokens)),
        tokenizer_files=list(tokenizer_files),
    )


def _require_few_shards(job: Job) -> None:
    """Raise ConfigError when no manifest could hold the plan's shards."""
    shard_tokens = job.config.shard_tokens
    num_shards = sum(sum(splits.values()) for splits in planned_shards(job.producers, shard_tokens).values())
    if num_shards > MAX_SHARDS:
        raise ConfigError(
            f"--shard-tokens {shard_tokens} makes {num_shards:,} shards, a cache holds {MAX_SHARDS:,}; "
            f"expected --shard-tokens {-(-shard_tokens * num_shards // MAX_SHARDS):,} or more"
        )


def _require_context(teacher: Teacher, config: PrecomputeConfig) -> None:
    if len(teacher.tokenizer) > teacher.vocab_size:
        raise TokenizerMismatchError(config.teacher, len(teacher.tokenizer), teacher.vocab_size)
    if config.soft_targets.top_k > teacher.vocab_size:
        raise ConfigError(
            f"--soft-targets.top-k is {config.soft_targets.top_k}, the teacher's vocabulary has {teacher.vocab_size}"
        )
    teacher.require_context("--block-size", config.block_size)
    for kind, producer in PRODUCERS.items():
        if kind in config.kinds:
            teacher.require_context(*producer.context_needed(config))


def _tokenization_key(corpus: Corpus, teacher: Teacher, config: PrecomputeConfig) -> str:
    """Names tokenized text by everything that it depends on."""
    facts = {
        "corpus": corpus.fingerprint,
        "tokenizer": repr(teacher.tokenizer.backend_tokenizer.to_str())
        if teacher.tokenizer.is_fast
        else repr(sorted(teacher.tokenizer.get_vocab().items())),
        "settings": {name: value for name, value in _content_settings(config).items() if name in _LAYOUT_SETTINGS},
        "prompts": [
            (s.prompt_column, s.max_new_tokens) for s in config.prompt_settings.values() if s.prompt_column is not None
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


_LAYOUT_SETTINGS = (
    "block_size",
    "document_separator",
    "max_tokens",
    "seed",
    "text_column",
    "validation_fraction",
)


def _content_settings(config: PrecomputeConfig) -> dict[str, Any]:
    """Settings that decide what the rows hold, as they stand in the manifest."""
    settings = {name: getattr(config, name) for name in (*_LAYOUT_SETTINGS, "shard_tokens")}
    kinds = {kind: dataclasses.asdict(getattr(config, kind)) for kind in config.kinds}
    plain: dict[str, Any] = json.loads(json.dumps(settings | kinds))
    return plain


def _facts(config: PrecomputeConfig, teacher: Teacher, corpus: Corpus) -> dict[str, Any]:
    """What the identity says of teacher, source and settings: all that is known before the text is read."""
    model_config = teacher.model.config
    return {
        "vocab_size": teacher.vocab_size,
        "block_size": config.block_size,
        "record_batch_rows": RECORD_BATCH_ROWS,
        "temperatures": config.soft_targets.temperatures,
        "teacher": {
            "id": teacher.name,
            "revision": teacher.revision,
            "architecture": (model_config.architectures or [type(teacher.model).__name__])[0],
            "num_parameters": teacher.num_parameters,
            "context_length": teacher.context_length,
            "dtype": str(teacher.dtype).removeprefix("torch."),
            "weights_bytes": teacher.weights_bytes,
            "weights_sha256": teacher.weights_sha256,
        },
        "tokenizer": {"size": len(teacher.tokenizer), "eos_token_id": teacher.tokenizer.eos_token_id},
        "data": {
            "source": corpus.source,
            "fingerprint": corpus.fingerprint,
            "licence": corpus.licence,
            "packing": PACKING_RECIPE,
        },
        "config": _content_settings(config),
    }


def _identity(job: Job, tokenizer_hash: str) -> CacheIdentity:
    facts = _facts(job.config, job.teacher, job.corpus)
    facts["tokenizer"] |= {"sha256": tokenizer_hash}
    facts["data"] |= {
        **dataclasses.asdict(job.tokenized.counts),
        "longest_prompt_tokens": {
            kind: producer.longest_prompt_tokens
            for kind, producer in job.producers.items()
            if producer.longest_prompt_tokens
        },
        "num_tokens": {split: store.num_tokens for split, store in job.tokenized.documents.items()},
    }
    software = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("teachonce", "torch", "transformers", "pyarrow")},
    }
    planned = planned_shards(job.producers, job.config.shard_tokens)
    return CacheIdentity(**facts, software=software, planned_shards=planned)


def _save_tokenizer(teacher: Teacher, work_dir: Path) -> Path:
    """The tokenizer's files in a directory that no other run shares."""
    with refusals(work_dir):
        directory = Path(tempfile.mkdtemp(dir=work_dir, prefix="tokenizer-"))
    with refusals(directory):
        teacher.tokenizer.save_pretrained(directory)
    return directory


def plan_only(config: PrecomputeConfig, report: Callable[[Job], str]) -> str:
    """Load everything, write nothing outside a temporary directory, and return `report` of the job.

    Raises CacheMismatchError, too, for a place where another cache was begun.
    """
    destination = open_destination(config.out, config.work_dir)
    with tempfile.TemporaryDirectory() as directory:
        return report(load_job(config, Path(directory), destination.require_same_facts))
