"""Settings in plan and manifest: find them, flatten them, and check those that readers compute with.

A setting that is stated must be right. Settings may be missing, as in old caches and in caches without the kind. Code
that requires a setting gets it with `Cache.setting`, which raises RecordError for a missing one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.errors import RecordError
from storage.rows.kinds import KINDS
from storage.rows.setting_rules import LONGEST_ROW_TOKENS, Rule, either, of, token_ids, whole


def check_settings(content: dict[str, Any], vocab_size: int, path: Path) -> None:
    """Raise RecordError, which names `path`, for a setting that is stated and breaks its rule."""
    for names, (is_right, expected) in _rules(vocab_size).items():
        try:
            value = find_setting(content, names)
        except KeyError:
            continue
        if not is_right(value):
            raise RecordError(str(path), f"{'.'.join(names)!r} is {value!r:.60}, expected {expected}")


def find_setting(content: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value at the path `names` in nested objects; raise KeyError when there is none."""
    value: Any = content
    for name in names:
        if not isinstance(value, dict):
            raise KeyError(name)
        value = value[name]
    return value


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dictionary with dotted names; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _rules(vocab_size: int) -> dict[tuple[str, ...], Rule]:
    """Return the rule of each setting. A key is the setting's path of names."""
    rules: dict[tuple[str, ...], Rule] = {
        ("teacher", "context_length"): whole(1, (1 << 63) - 1),
        ("tokenizer", "size"): whole(0, (1 << 63) - 1),
        ("tokenizer", "sha256"): of(str, "a sha256"),
        ("data", "longest_prompt_tokens"): of(dict, "an object"),
    }
    for kind in KINDS.values():
        if kind.has_prompts:
            rules["data", "longest_prompt_tokens", kind.name] = whole(0, LONGEST_ROW_TOKENS)
    for kind in KINDS.values():
        rules["config", kind.name] = of(dict, "an object")
        rules |= {("config", kind.name, name): rule for name, rule in kind.setting_rules.items()}
    rules["tokenizer", "eos_token_id"] = either(whole(0, vocab_size - 1), None)
    rules |= {("tokenizer", name): token_ids(vocab_size) for name in ("beginning_ids", "end_ids")}
    return rules
