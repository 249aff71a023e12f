"""Caches from strangers: a good one with rows of every kind and a tokenizer, and the tools to turn it hostile.

Everything here keeps the checksums right, so that nothing but the hostility itself can be refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from tests.storage.hostile import Batches, read_batches, with_array, write_batches

VOCAB_SIZE = 50
FIRST = {
    "soft_targets": "soft_targets/train-00000-of-00002.arrow",
    "samples": "samples/train-00000-of-00001.arrow",
    "beams": "beams/train-00000-of-00001.arrow",
}
LAST_BLOCKS = "soft_targets/train-00001-of-00002.arrow"
ROWS_PER_SHARD = {
    "soft_targets": {"train": [8, 5], "validation": [3]},
    "samples": {"train": [6]},
    "beams": {"train": [5], "validation": [2]},
}


Forgery = Callable[[Path, SimpleNamespace], object]


def write_good_cache(directory: Path, make: SimpleNamespace, forge: SimpleNamespace) -> Path:
    """What a student trains from: 29 rows, and a tokenizer with a token for every entry of the vocabulary."""
    identity = make.identity()
    make.cache(
        directory,
        ROWS_PER_SHARD,
        data=identity.data | {"longest_prompt_tokens": {"samples": 3, "beams": 3}},
        config={
            "soft_targets": {"top_k": 3, "tail_weight": 0.25},
            "samples": {"max_new_tokens": 6},
            "beams": {"max_new_tokens": 5, "length_penalty": 1.0},
        },
    )
    vocab = {f"t{i}": i for i in range(VOCAB_SIZE)}
    (directory / "tokenizer").mkdir()
    write_json(directory / "tokenizer/tokenizer.json", _tokenizer(vocab))
    write_json(directory / "tokenizer/tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    seal_tokenizer(directory, forge)
    return directory


def _tokenizer(vocab: dict[str, int]) -> dict[str, Any]:
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
    return {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(parts)


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON."""
    path.write_text(json.dumps(content))


# Records


def identity(**changes: object) -> Forgery:
    """Change keys of plan and manifest."""
    return lambda cache_dir, forge: forge.identity(cache_dir, lambda content: content.update(changes))


def inside(*names: str, **changes: object) -> Forgery:
    """Change keys of an object inside plan and manifest."""

    def change(content: dict[str, Any]) -> None:
        for name in names:
            content = content[name]
        content.update(changes)

    return lambda cache_dir, forge: forge.identity(cache_dir, change)


def without(*names: str) -> Forgery:
    """Take a key out of plan and manifest."""

    def change(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        del content[names[-1]]

    return lambda cache_dir, forge: forge.identity(cache_dir, change)


def manifest(change: Callable[[dict[str, Any]], object]) -> Forgery:
    """Change the manifest alone."""
    return lambda cache_dir, forge: forge.record(cache_dir / "manifest.json", change)


def shard(path: str, **changes: object) -> Forgery:
    """Change a shard's record in its commit and in the manifest."""
    return lambda cache_dir, forge: forge.shard_record(cache_dir, path, **changes)


def shard_path(path: str) -> Forgery:
    """Give the first shard another path."""
    return manifest(lambda content: content["shards"][0].update(path=path))


def file_path(path: str) -> Forgery:
    """Give the first of the manifest's other files another path."""
    return manifest(lambda content: content["files"][0].update(path=path))


def manifest_bytes(change: Callable[[bytes], bytes]) -> Forgery:
    """Change the manifest's bytes, which are not sealed again."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        path = cache_dir / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return forgery


def nested(depth: int) -> list[Any]:
    """A list in a list in a list …"""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# Things that are not files


def link(name: str, target: Callable[[Path], Path] | None = None) -> Forgery:
    """Move what stands at `name` out of the cache and leave a link to it, or to `target`."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        elsewhere = outside(cache_dir) / name.replace("/", "-")
        (cache_dir / name).rename(elsewhere)
        (cache_dir / name).symlink_to(elsewhere if target is None else target(cache_dir))

    return forgery


def outside(cache_dir: Path) -> Path:
    """A directory that no cache may reach."""
    directory = cache_dir.parent / "outside"
    directory.mkdir(exist_ok=True)
    return directory


def special(name: str, make_special: Callable[[Path], object]) -> Forgery:
    """Replace a file by something that opens and never ends, or is none."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        (cache_dir / name).unlink()
        make_special(cache_dir / name)

    return forgery


def bind_socket(path: Path) -> None:
    """A socket at `path`, bound under a short name because such names are bounded."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="s") as directory:
        current = Path.cwd()
        try:
            os.chdir(directory)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("s")
        finally:
            os.chdir(current)
        (Path(directory) / "s").rename(path)


def shard_bytes(kind: str, change: Callable[[bytes], bytes]) -> Forgery:
    """Change the bytes of the kind's first shard."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        path = cache_dir / FIRST[kind]
        changed = change(path.read_bytes())
        path.write_bytes(changed)
        forge.accept_shard(cache_dir, FIRST[kind])

    return forgery


def shard_batches(kind: str, change: Callable[[Batches], Batches], **settings: Any) -> Forgery:
    """Write other record batches as the kind's first shard."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        batches = change(read_batches(cache_dir, FIRST[kind]))
        (cache_dir / FIRST[kind]).write_bytes(write_batches(batches, **settings))
        forge.accept_shard(cache_dir, FIRST[kind])

    return forgery


def values(kind: str, name: str, edit: Callable[[list[Any]], object]) -> Forgery:
    """Change the values of a column in the first record batch of the kind's first shard."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        first, *others = read_batches(cache_dir, FIRST[kind])
        (cache_dir / FIRST[kind]).write_bytes(write_batches([forge.column(first, name, edit), *others]))
        forge.accept_shard(cache_dir, FIRST[kind])

    return forgery


def array(kind: str, name: str, change: Callable[[pa.Array], pa.Array]) -> Forgery:
    """Replace a column of the first record batch, without a look at what it holds."""
    return shard_batches(kind, lambda batches: [with_array(batches[0], name, change), *batches[1:]])


# Tokenizers


def tokenizer(name: str, change: Callable[[Any], Any]) -> Forgery:
    """Change a JSON file of the tokenizer, made when it is not there, and seal the tokenizer again."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        path = cache_dir / "tokenizer" / name
        content = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, change(content) or content)
        seal_tokenizer(cache_dir, forge)

    return forgery


def vocabulary(num_tokens: int) -> Forgery:
    """A tokenizer with another number of tokens."""
    vocab = {f"t{i}": i for i in range(num_tokens)}
    return tokenizer("tokenizer.json", lambda content: _tokenizer(vocab))


def tokenizer_with_code(name: str, **settings: object) -> Forgery:
    """A tokenizer that asks for a class in a file beside it, which says on the disk that it was run."""

    def forgery(cache_dir: Path, forge: SimpleNamespace) -> None:
        proof = outside(cache_dir) / "code-was-run"
        code = f"open({str(proof)!r}, 'w').close()\nclass Stranger: pass\n"
        (cache_dir / "tokenizer/stranger.py").write_text(code)
        tokenizer(name, lambda content: content.update(settings))(cache_dir, forge)

    return forgery


def seal_tokenizer(cache_dir: Path, forge: SimpleNamespace) -> None:
    """Make plan and manifest speak of the tokenizer's files as they now are."""
    paths = sorted((cache_dir / "tokenizer").iterdir())
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    lines = "".join(f"{path.name} {sha256}\n" for path, sha256 in hashes.items())
    inside("tokenizer", sha256=hashlib.sha256(lines.encode()).hexdigest())(cache_dir, forge)
    files = [
        {"path": f"tokenizer/{path.name}", "file_bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in hashes.items()
    ]
    manifest(lambda content: content.update(files=content["files"][:1] + files))(cache_dir, forge)


# Watching


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Every name below a directory with its size and time of change; links are not followed."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in walk(directory) if not path.is_dir()
    }


def walk(directory: Path) -> Iterator[Path]:
    """Everything below a directory; links are not followed."""
    for root, directories, files in os.walk(directory):
        yield from (Path(root) / name for name in [*directories, *files])
