"""Fakes, not downloads: a tiny random GPT-2 with a byte-level tokenizer, real prose, and a cache made of them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pipeline import BeamsConfig, PrecomputeConfig, SamplesConfig, SoftTargetsConfig
from storage import Cache
from storage.reading import proofs
from tests.browser import headless_chromium
from tests.precomputed import precomputed
from tests.storage.object_store import S3Proxy, s3_proxy

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# What a test proves does not hang on how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

EOS = "<|endoftext|>"
_PROSE = "the teacher ran once and wrote down what it knew so that a student may learn from it alone"


def make_tokenizer(directory: Path, *, eos_token: str | None = EOS) -> None:
    """A byte-level tokenizer: 256 bytes and, perhaps, an end-of-text token."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    if eos_token:
        vocab[eos_token] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token).save_pretrained(directory)


def make_teacher(directory: Path, *, vocab_size: int = 257, eos_token: str | None = EOS, seed: int = 0) -> Path:
    """A random GPT-2 of about 30,000 parameters whose distributions are far from flat."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.25,
        bos_token_id=None, eos_token_id=256 if eos_token else None,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    make_tokenizer(directory, eos_token=eos_token)
    return directory


def make_text(num_documents: int, seed: int = 0) -> list[str]:
    """Documents of 3 to 40 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(_PROSE.split(), k=rng.randint(3, 40))) + ".\n" for _ in range(num_documents)]


def tiny_config(teacher: Path, data: Path, out: Path, **changes: object) -> PrecomputeConfig:
    """A run of a second or two with several shards of each kind."""
    settings: dict[str, object] = {
        "teacher": str(teacher),
        "data": str(data),
        "out": out,
        "document_separator": "\n",
        "block_size": 32,
        "batch_tokens": 256,
        "shard_tokens": 1100,
        "validation_fraction": 0.2,
        "device": "cpu",
        "quiet": True,
        "soft_targets": SoftTargetsConfig(top_k=4, tail_weight=0.05, temperatures=(1.0, 2.0)),
        "samples": SamplesConfig(num_prompts=20, prompt_tokens=6, max_new_tokens=12),
        "beams": BeamsConfig(num_prompts=20, prompt_tokens=6, max_new_tokens=6),
    }
    return PrecomputeConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors here are tiny: on a busy machine threads would spend their time waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_stops() -> None:
    """A shell that starts pytest in the background lets it ignore Ctrl-C; tests, and what they start, must not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Notes of checked rows that no earlier session left. Other processes note as ever."""
    path = tmp_path_factory.mktemp("notes") / "notes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "notes_path", lambda: path)
        yield


_real_fsync = os.fsync


@pytest.fixture(scope="session", autouse=True)
def fast_disk() -> Iterator[None]:
    """Sync nothing: no file of a test has to outlive a power failure, and syncs take longer than all else.

    Tests of what is synced, and when, put a function of their own in this place. Other processes sync as ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def real_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync as ever."""
    monkeypatch.setattr(os, "fsync", _real_fsync)


@pytest.fixture(scope="session")
def helpers(pytestconfig: pytest.Config) -> ModuleType:
    """The functions of this file (make_teacher, make_text, tiny_config, …)."""
    return pytestconfig.pluginmanager.get_plugin(__file__)


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "documents.txt"
    path.write_text("".join(make_text(60)))
    return path


@pytest.fixture(scope="session")
def cache(teacher_dir: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A finished cache with a sampled tail; tests that change it copy it first."""
    return precomputed(tiny_config(teacher_dir, text_file, tmp_path_factory.mktemp("cache") / "cache"))


@pytest.fixture(scope="session")
def bucketed_cache(teacher_dir: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The same with the tail kept as one number."""
    settings = SoftTargetsConfig(top_k=8, tail_weight=None, temperatures=(1.0, 2.0))
    out = tmp_path_factory.mktemp("bucketed") / "cache"
    return precomputed(tiny_config(teacher_dir, text_file, out, soft_targets=settings))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium (see tests/browser.py); of a module, because its event loop keeps others from running."""
    with headless_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def _proxy() -> Iterator[S3Proxy]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_proxy() as proxy:
        yield proxy


@pytest.fixture
def s3(_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> S3Proxy:
    """The proxy, while neither s3fs nor botocore tries anything again by itself."""
    from s3fs import S3FileSystem

    _proxy.reset()
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": _proxy.url,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return _proxy


@pytest.fixture
def bucket(s3: S3Proxy) -> str:
    """An empty bucket."""
    return s3.make_bucket()
