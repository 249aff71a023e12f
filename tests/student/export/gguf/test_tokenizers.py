"""llama.cpp cuts text into the student's tokens, or the tokenizer is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from storage.text.characters import CharacterTokenizer
from student.errors import NotExportableError, OtherTokensError
from student.export.command import export_student
from student.export.config import ExportConfig
from student.export.gguf import sentencepiece as sentencepiece_module
from student.export.gguf.cutting import cut_of
from student.export.gguf.file import write_gguf
from student.export.gguf.sentencepiece import byte_token, read_sentencepiece
from student.export.gguf.tokenizer import check_tokenizer
from student.model.framing import Framing
from student.model.tokenizers import load_tokenizer
from tests.student.export.comparing import NO_BOS, TEXT, open_gguf
from tests.student.export.gguf.conftest import byte_level, make_model, make_tokenizer, sentencepiece

TEXTS = [
    TEXT, "it's  we'll\n\n\tI'M 3.14 ½ <|endof", "naïve\r\n 日本 \u00a0x 1234567", "I'LL WE'Re don'T\n", "",
    "a</s> <s>c <0x41> <unk>", "the teacher   ran", "wrote\n\n  what", "aaaa  ", "[PAD300]",
]  # fmt: skip
SENTENCEPIECE = ["first", "legacy", "split", "never", "LlamaTokenizer"]
BYTE_LEVEL = ["gpt-2", "smollm", "qwen2", "llama-bpe", "smaug-bpe", "Qwen2Tokenizer"]


@pytest.fixture(scope="module")
def file_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Write a tokenizer with a tiny model."""

    def write(tokenizer: Any) -> Path:
        path = tmp_path_factory.mktemp("tokenizer") / "student.gguf"
        beginning = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        framing = Framing(beginning_ids=beginning, end_ids=(tokenizer.eos_token_id,))
        check_tokenizer(tokenizer, framing, "student")
        write_gguf(make_model("llama", len(tokenizer) + 3), tokenizer, framing, path, "none", name="student")
        return path

    return write


@pytest.mark.parametrize("reader", ["numpy", "llama.cpp"])
@pytest.mark.parametrize("kind", SENTENCEPIECE + BYTE_LEVEL)
def test_text_is_cut_into_the_same_tokens(file_with: Callable[[Any], Path], reader: str, kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    opened = open_gguf(reader, file_with(tokenizer))
    texts = TEXTS + (["a<tool_call> b", " leading"] if kind in BYTE_LEVEL else [])
    for text in texts:
        assert opened.tokenize(text) == CharacterTokenizer(tokenizer).ids(text), text


@pytest.mark.parametrize("reader", ["numpy", "llama.cpp"])
def test_gpt2_students_too(student_dir: Path, exported: Callable[..., Path], reader: str) -> None:
    opened = open_gguf(reader, exported(student_dir, "gguf"))
    for text in [*TEXTS, " leading"]:
        assert opened.tokenize(text) == load_tokenizer(student_dir)(text, add_special_tokens=False)["input_ids"]


def fields(path: Path, *names: str) -> list[Any]:
    found = [GGUFReader(path).get_field(f"tokenizer.ggml.{name}") for name in names]
    return [field and field.contents() for field in found]


def test_a_sentencepiece_vocabulary_in_the_file(file_with: Callable[[Any], Path]) -> None:
    tokenizer = sentencepiece()
    path = file_with(tokenizer)
    assert fields(path, "model", "pre", "add_space_prefix", "merges") == ["llama", "default", True, None]
    assert fields(path, "bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token") == [1, 2, 0, True]
    tokens, types, scores = fields(path, "tokens", "token_type", "scores")
    assert len(tokens) == len(types) == len(scores) == len(tokenizer) + 3
    assert types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert (tokens[-1], types[-1]) == (f"[PAD{len(tokens) - 1}]", TokenType.UNUSED)
    ranks = {left + right: rank for rank, (left, right) in enumerate(_merges(tokenizer))}
    assert len(ranks) > 20
    assert {token: -scores[tokens.index(token)] for token in ranks} == ranks
    assert fields(file_with(sentencepiece("never")), "add_space_prefix") == [False]


def test_a_byte_level_vocabulary_in_the_file(file_with: Callable[[Any], Path]) -> None:
    path = file_with(byte_level("llama-bpe"))
    assert fields(path, "model", "pre", "scores", "add_bos_token") == ["gpt2", "llama-bpe", None, False]
    tokens, types, merges = fields(path, "tokens", "token_type", "merges")
    assert types[tokens.index("<tool_call>")] == TokenType.USER_DEFINED
    assert types[tokens.index("<|endoftext|>")] == TokenType.CONTROL
    assert " ".join(_merges(byte_level("llama-bpe"))[5]) == merges[5]
    template = GGUFReader(path).get_field("tokenizer.chat_template")
    assert template is not None
    assert template.contents() == "{{ messages[0].content }}"


def test_a_file_that_cuts_text_otherwise_is_not_kept(
    rotary_students: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 8, encoding="utf-8")
    monkeypatch.setattr(sentencepiece_module, "_adds_space", lambda *_: False)
    config = ExportConfig(
        student=rotary_students["llama"], out=tmp_path / "out.gguf", format="gguf", text=tmp_path / "text.txt",
        max_tokens=300, quiet=True,
    )  # fmt: skip
    with pytest.raises(
        OtherTokensError, match=r"out\.gguf: not kept: .* into 'The ▁teac her' where .* '▁ The ▁teac'"
    ) as caught:
        export_student(config)
    assert "\n" not in str(caught.value)
    assert not config.out.exists()


def test_what_is_accepted_is_cut_alike_in_any_text() -> None:
    """Random merges, also in orders that no training gives; tokenizers is the truth."""
    draw = random.Random(0)
    num_accepted = 0
    for _ in range(300):
        tokens, merges = list("abc"), []
        for _ in range(draw.randint(3, 12)):
            pair = draw.choice(tokens), draw.choice(tokens)
            if pair not in merges and len(pair[0] + pair[1]) < 6:
                merges.append(pair)
                tokens += [pair[0] + pair[1]] * (pair[0] + pair[1] not in tokens)
        draw.shuffle(merges)
        tokenizer = sentencepiece("never", merges, more_tokens=tokens)
        try:
            vocabulary = read_sentencepiece(_stated(tokenizer), "student")
        except NotExportableError:
            continue
        num_accepted += 1
        texts = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
        scores = [vocabulary.scores.get(token, -1e4) for token in texts]
        cut = cut_of({"tokens": texts, "token_type": [1] * len(texts), "model": "llama", "scores": scores}.get)
        for _ in range(20):
            text = "".join(draw.choices("abc", k=draw.randint(1, 40)))
            assert cut(text) == tokenizer(text, add_special_tokens=False)["input_ids"], (merges, text)
    assert 50 < num_accepted < 300


def _stated(tokenizer: Any) -> dict[str, Any]:
    stated: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return stated


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    return [(left, right) for left, right in _stated(tokenizer)["model"]["merges"]]


def _wrapped(model: Any) -> Any:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def _changed(tokenizer: Any, **parts: Any) -> Any:
    """Return the tokenizer with other parts of its backend."""
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def _with_token(tokenizer: Any, token: str, **flags: bool) -> Any:
    tokenizer.add_tokens([AddedToken(token, **flags)])
    return tokenizer


_BYTES = {char: i for i, char in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>", "ab"])}
_PIECES = [("<unk>", 0.0), ("a", -1.0), *((byte_token(byte), -9.0) for byte in range(256)), ("<end>", 0.0)]
_OTHER_MERGES = [("a", "b"), ("b", "c"), ("a", "bc")]
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "words": (
        lambda: _wrapped(models.WordLevel({"a": 0, "<end>": 1}, "<end>")),
        "its model is WordLevel, expected BPE",
    ),
    "unigram": (lambda: _wrapped(models.Unigram(_PIECES, 0, byte_fallback=True)), "its model is Unigram, expected BPE"),
    "no merges": (lambda: _wrapped(models.BPE(_BYTES, [])), "it has no merges"),
    "dropout": (lambda: _wrapped(models.BPE(_BYTES, [("a", "b")], dropout=0.5)), "it has dropout 0.5"),
    "prefix": (
        lambda: _changed(byte_level("gpt-2"), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "it splits text otherwise than the byte-level BPE of GPT-2, SmolLM, Qwen2 or Llama 3",
    ),
    "pattern": (
        lambda: _changed(byte_level("gpt-2"), pre_tokenizer=pre_tokenizers.ByteLevel(False, use_regex=False)),
        "it splits text otherwise",
    ),
    "whole pieces": (
        lambda: _changed(byte_level("llama-bpe"), pre_tokenizer=byte_level("qwen2").backend_tokenizer.pre_tokenizer),
        "it splits text otherwise",
    ),
    "lower case": (
        lambda: _changed(byte_level("qwen2"), normalizer=normalizers.Lowercase()),
        "its normalizer is Lowercase, expected none or NFC",
    ),
    "spaces beside a token": (
        lambda: _with_token(byte_level("gpt-2"), "<mask>", lstrip=True),
        "its added token '<mask>' takes spaces beside it",
    ),
    "other merges": (
        lambda: sentencepiece("never", _OTHER_MERGES, more_tokens=list("abc")),
        "its merges do not join 'ab' and 'c', and 'abc' is a token",
    ),
    "whole texts": (lambda: sentencepiece(ignore_merges=True), "a whole text that is a token before any merge"),
    "a space inside": (
        lambda: sentencepiece("split", [("h", "▁"), ("▁", "t")]),
        "it splits text at spaces, and has a token with one inside",
    ),
    "spaces left": (
        lambda: _changed(sentencepiece(), pre_tokenizer=None),
        "it replaces spaces otherwise than sentencepiece",
    ),
    "a token with a space": (lambda: _with_token(sentencepiece(), "a b"), "its added token 'a b' has a space"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(kind: str) -> None:
    make, problem = REFUSED[kind]
    with pytest.raises(NotExportableError, match=problem) as caught:
        check_tokenizer(make(), NO_BOS, "student")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_or_a_byte_is_refused() -> None:
    endless = byte_level("gpt-2")
    endless.eos_token = None
    with pytest.raises(NotExportableError, match="without an end-of-text token"):
        check_tokenizer(endless, NO_BOS, "student")
    bytes_but_one = {byte_token(byte): byte for byte in range(255)}
    with pytest.raises(NotExportableError, match="it has no token for the byte <0xFF>"):
        check_tokenizer(_wrapped(models.BPE(bytes_but_one | {"<end>": 255}, [], byte_fallback=True)), NO_BOS, "student")
