"""Train a small GPT-2 teacher and its byte-level BPE, for machines without a checkpoint.

    python -m scripts.teacher --data stdlib --out demo/teacher

If it was killed, the same line goes on from its last checkpoint, which is kept in OUT.training until the teacher is
finished. With as many threads it ends with the same weights. With a higher --epochs it trains longer.

The model reads the training split only. It never sees the documents that teachonce-precompute holds out with the same
seed and validation fraction. The BPE counts pairs over all documents, the held-out ones too.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
import tyro
from transformers import PreTrainedTokenizerFast

from pipeline.config import PrecomputeConfig
from pipeline.corpus.tokenization import TokenizedCorpus, tokenize_corpus
from pipeline.sources.corpus import Corpus, open_corpus
from scripts.support.teachers import EOS, new_gpt2, train_byte_level_bpe
from scripts.teacher.card import TrainedTeacher, write_card
from scripts.teacher.config import TeacherConfig
from scripts.teacher.held_out import continuations, measure
from scripts.teacher.package_text import sources_path
from scripts.teacher.training import Schedule, train_model
from storage.command import run_command
from storage.disk.directories import publishing_path
from storage.disk.files import refusals, write_file
from storage.errors import ConfigError
from storage.progress import tell
from storage.tensors.matmul_precision import use_fast_matmul
from storage.tensors.model_facts import num_parameters


def main() -> None:
    """Run the command."""
    run_command(make_teacher)


def make_teacher() -> int:
    """Train and save the teacher and its tokenizer. Leave a finished teacher as it is.

    Raises ConfigError when --out is a file or holds something other than a teacher, or when an unfinished teacher was
    begun with other settings.
    """
    config = tyro.cli(TeacherConfig, description=__doc__)
    transformers.logging.disable_progress_bar()
    if (config.out / "config.json").is_file():
        tell(f"{config.out}: a teacher is there already")
        return 0
    if config.out.exists() and not (config.out.is_dir() and not any(config.out.iterdir())):
        raise ConfigError(f"--out {config.out}: is there already and is no teacher; name a new or an empty directory")
    use_fast_matmul()
    work_dir = config.out.with_name(f"{config.out.name}.training")
    corpus = open_corpus(_reading(config, config.data))
    _require_same_teacher(work_dir, config, corpus)
    tokenizer = _own_tokenizer(work_dir, config, corpus)
    tokenized = _tokenize(work_dir / "tokens", config, config.data, tokenizer)
    schedule = _schedule(config, len(tokenized.blocks["train"]))
    model = new_gpt2(
        vocab_size=len(tokenizer), layers=config.layers, width=config.width, heads=config.heads,
        context=config.context, eos_token_id=tokenizer.eos_token_id, seed=config.seed, device="cpu",
    )  # fmt: skip
    tell(f"teacher: {num_parameters(model):,} parameters, {len(tokenized.blocks['train']):,} blocks")
    train_model(model, tokenized.blocks["train"], schedule, work_dir)
    model.to(dtype=torch.float16 if config.half_precision else torch.float32)
    with publishing_path(config.out) as staged, refusals(config.out):
        tokenizer.save_pretrained(staged)
        model.save_pretrained(staged)
        write_card(staged, _describe(model.float(), tokenizer, tokenized, schedule, config))
    shutil.rmtree(work_dir)
    return 0


def _reading(config: TeacherConfig, data: str) -> PrecomputeConfig:
    return PrecomputeConfig(
        teacher=str(config.out),
        data=data,
        out=config.out,
        block_size=config.block_size,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
    )


def _schedule(config: TeacherConfig, num_blocks: int) -> Schedule:
    return Schedule(
        steps=max(1, int(config.epochs * num_blocks) // config.batch_blocks),
        batch_blocks=config.batch_blocks,
        learning_rate=config.learning_rate,
        computes_in=getattr(torch, config.dtype),
        seed=config.seed,
    )


def _require_same_teacher(work_dir: Path, config: TeacherConfig, corpus: Corpus) -> None:
    """Raise ConfigError when another teacher was begun in `work_dir`. Another --epochs may be the same teacher."""
    facts = config.settings_of_a_step() | {"data": f"{corpus.source} ({corpus.fingerprint[:16]})"}
    path = work_dir / "settings.json"
    if not path.is_file():
        write_file(path, json.dumps(facts).encode())
        return
    for name, begun in json.loads(path.read_text()).items():
        if begun != facts[name]:
            raise ConfigError(
                f"{work_dir}: begun with --{name.replace('_', '-')} {begun}, not {facts[name]}; "
                "repeat it, or delete that directory"
            )


def _own_tokenizer(work_dir: Path, config: TeacherConfig, corpus: Corpus) -> PreTrainedTokenizerFast:
    directory = work_dir / "tokenizer"
    if not directory.is_dir():
        texts = (piece for document in corpus.documents() for piece in document.pieces)
        trained = train_byte_level_bpe(texts, config.vocab_size)
        with publishing_path(directory) as staged, refusals(directory):
            PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=EOS, bos_token=EOS).save_pretrained(staged)
    return PreTrainedTokenizerFast.from_pretrained(directory)


def _tokenize(work_dir: Path, config: TeacherConfig, data: str, tokenizer: Any) -> TokenizedCorpus:
    reading = _reading(config, data)
    return tokenize_corpus(
        open_corpus(reading),
        tokenizer,
        reading,
        vocab_size=len(tokenizer),
        context_length=config.context,
        work_dir=work_dir,
    )


def _describe(
    model: Any, tokenizer: Any, tokenized: TokenizedCorpus, schedule: Schedule, config: TeacherConfig
) -> TrainedTeacher:
    blocks = tokenized.blocks["train"]
    sources = sources_path(Path(config.data))
    held_out = [(tokenized.blocks["validation"], f"documents of {Path(config.data).name} that are held out")]
    if config.unseen_data is not None:
        with tempfile.TemporaryDirectory() as work_dir:
            unseen = _tokenize(
                Path(work_dir) / "tokens", replace(config, validation_fraction=0.0), config.unseen_data, tokenizer
            )
            held_out.append((unseen.blocks["train"], Path(config.unseen_data).name))
    return TrainedTeacher(
        line=f"python -m scripts.teacher {shlex.join(sys.argv[1:])}",
        shape=(
            f"{num_parameters(model):,} parameters: {config.layers} layers of {config.width}, {config.heads} heads, "
            f"{len(tokenizer):,} tokens, context {config.context}."
        ),
        training=(
            f"{schedule.steps:,} steps of {config.batch_blocks * config.block_size:,} tokens, "
            f"{schedule.steps * config.batch_blocks / len(blocks):.2f} passes over "
            f"{len(blocks) * config.block_size:,} tokens. Threads: {torch.get_num_threads()}."
        ),
        sources=json.loads(sources.read_text()) if sources.is_file() else (),
        held_out=[measure(model, tokenizer, blocks, text) for blocks, text in held_out if len(blocks)],
        continuations=continuations(model, tokenizer, config.seed),
    )
