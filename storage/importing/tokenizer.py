"""The tokenizer of an import's teacher: its files, its size, and the ids of tokens that a source spells out."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.disk.hashing import files_sha256
from storage.errors import first_line
from storage.importing.errors import ImportTokenizerError, UnknownTokenError
from storage.text.tokenizer_files import is_unreadable_tokenizer

_MODEL, _CONFIG = "tokenizer.json", "tokenizer_config.json"
# A tokenizer's directory is often a model's. Of its files these belong to the tokenizer.
_FILES = (
    _MODEL, _CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# vLLM spells a token so when it is asked to return tokens as ids.
_ID_PREFIX = "token_id:"
# What decoders put in place of bytes that are no character.
_NO_CHARACTER = "\ufffd"


class ImportTokenizer:
    """A tokenizer directory. Raise ImportTokenizerError when it cannot be read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in (_MODEL, _CONFIG):
            if not (directory / name).is_file():
                raise ImportTokenizerError(str(directory), f"holds no {name}, expected the directory of a tokenizer")
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(directory / _MODEL))
            self._config = json.loads((directory / _CONFIG).read_text())
        except BaseException as error:
            if not is_unreadable_tokenizer(error):
                raise
            raise ImportTokenizerError(str(directory), f"not a tokenizer ({first_line(error)})") from error

    @property
    def files(self) -> list[Path]:
        """The files that travel with the cache, by name."""
        return [path for name in sorted(_FILES) if (path := self.directory / name).is_file()]

    @property
    def sha256(self) -> str:
        """The hash of the files, as `directory_sha256` of the cache's own tokenizer gives it."""
        return files_sha256(self.files)

    @functools.cached_property
    def size(self) -> int:
        """Number of tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @functools.cached_property
    def num_ids(self) -> int:
        """The least vocabulary size that has all ids."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a document, None when the tokenizer names none."""
        named: Any = self._config.get("eos_token") if isinstance(self._config, dict) else None
        token = named.get("content") if isinstance(named, dict) else named
        return self._tokenizer.token_to_id(token) if isinstance(token, str) else None

    @functools.cached_property
    def beginning_ids(self) -> list[int]:
        """The ids, such as BOS, that the tokenizer puts before every text."""
        plain = self._tokenizer.encode("x", add_special_tokens=False).ids
        whole = self.encode("x")
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(plain)] == plain), [])

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, with the beginning that the tokenizer gives to every text."""
        return list(self._tokenizer.encode(text).ids)

    def text_of(self, token_id: int) -> str:
        """Return the text of one id, empty for an id that the tokenizer does not have."""
        return self._texts[token_id] if 0 <= token_id < len(self._texts) else ""

    def id_of(self, token: str, where: str) -> int:
        """Return the id of a token that is spelt as `token_id:ID`, or by its text when one id alone has that text.

        Raise UnknownTokenError, which names `where`.
        """
        if token.startswith(_ID_PREFIX) and token.removeprefix(_ID_PREFIX).isdecimal():
            return int(token.removeprefix(_ID_PREFIX))
        found = self._ids_of_text.get(token, [])
        if len(found) != 1 or _NO_CHARACTER in token:
            number = f"ids {found[0]}, {found[1]} and perhaps others have" if len(found) > 1 else "no single id has"
            raise UnknownTokenError(
                where,
                f"{number} the text {token!r:.60} in {self.directory}; ask the server for ids "
                "(vLLM: return_tokens_as_token_ids), or name the teacher's tokenizer",
            )
        return found[0]

    @functools.cached_property
    def _texts(self) -> list[str]:
        ids = [[token_id] for token_id in range(self.num_ids)]
        return list(self._tokenizer.decode_batch(ids, skip_special_tokens=False))

    @functools.cached_property
    def _ids_of_text(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for token_id, text in enumerate(self._texts):
            found[text].append(token_id)
        return found
