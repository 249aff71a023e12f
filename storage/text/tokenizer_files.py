"""Load a tokenizer from files that may hold anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.disk.json_files import read_json_object
from storage.errors import UnusableModelError, first_line

_JSON_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
NEEDS_OWN_CODE = (
    "it needs code of its own (auto_map), and code from a checkpoint never runs: save it as a class that "
    "transformers has"
)


def load_tokenizer_files(auto_tokenizer: Any, where: str, **options: Any) -> Any:
    """Return the tokenizer of a directory or hub id. Run no code from there, and ask nothing.

    auto_tokenizer: transformers' AutoTokenizer. Raise UnusableModelError.
    """
    try:
        tokenizer = auto_tokenizer.from_pretrained(where, trust_remote_code=False, **options)
    except BaseException as error:
        if not is_unreadable_tokenizer(error):
            raise
        raise UnusableModelError(f"no tokenizer: {_reason(error, Path(where))}") from error
    # Without files, transformers makes a tokenizer for some architectures that knows no text.
    if len(tokenizer) <= sum(token.special for token in tokenizer.added_tokens_decoder.values()):
        raise UnusableModelError("no tokenizer: no vocabulary, expected its files, such as tokenizer.json, beside it")
    return tokenizer


def _reason(error: BaseException, directory: Path) -> str:
    """Return why the tokenizer's files cannot be used, with the name of the file that is to blame."""
    found = {}
    try:
        for name in _JSON_FILES:
            if (directory / name).exists():
                found[name] = read_json_object(directory / name)
    except UnusableModelError as broken:
        return broken.reason
    if "trust_remote_code" in str(error) or "auto_map" in found.get("tokenizer_config.json", {}):
        return NEEDS_OWN_CODE
    return _reason_of_the_fast_tokenizer(directory / "tokenizer.json") or first_line(error)


def _reason_of_the_fast_tokenizer(path: Path) -> str | None:
    """Return why tokenizer.json is none, None when it is one or is not there."""
    from tokenizers import Tokenizer

    if not path.is_file():
        return None
    try:
        Tokenizer.from_file(str(path))
    except BaseException as error:
        if not is_unreadable_tokenizer(error):
            raise
        return f"{path.name}: {first_line(error)}"
    return None


def is_unreadable_tokenizer(error: BaseException) -> bool:
    """Return whether `error` means that a tokenizer cannot be loaded.

    Libraries raise any Exception, or a PanicException, which is not a subclass of Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
