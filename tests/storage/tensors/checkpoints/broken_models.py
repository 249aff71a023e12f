"""Ways in which the files of a model can be broken, or be those of something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

Break = Callable[[Path], None]
TINY_BERT: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
TINY_T5: dict[str, Any] = {"vocab_size": 257, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}


def change_json(name: str, **changes: object) -> Break:
    """Set keys of a JSON file. The value ... removes the key."""

    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        content |= changes
        (directory / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def change_tokenizer(**changes: object) -> Break:
    def change(directory: Path) -> None:
        content = json.loads((directory / "tokenizer.json").read_text())
        content["model"] |= changes
        (directory / "tokenizer.json").write_text(json.dumps(content))

    return change


def write(name: str, content: bytes) -> Break:
    def replace(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return replace


def truncate(name: str, num_bytes: int) -> Break:
    def cut(directory: Path) -> None:
        (directory / name).write_bytes((directory / name).read_bytes()[:num_bytes])

    return cut


def replace_by_directory(name: str) -> Break:
    def replace(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return replace


def index_missing_shards(directory: Path) -> None:
    """Weights in two shards, of which one is not there."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({name: tensors[name] for name in first}, directory / shards[0], metadata={"format": "pt"})
    weight_map = dict.fromkeys(first, shards[0]) | dict.fromkeys(second, shards[1])
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


class _Stranger:
    """A pickle of it runs a call."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pickle-was-run"),))


def pickled_code(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": _Stranger()}, directory / "pytorch_model.bin")


def foreign(model_type: str, settings: dict[str, Any], auto_class: Any) -> Break:
    """A model of another kind in place of the causal one."""

    def make(directory: Path) -> None:
        torch.manual_seed(0)
        for name in ("model.safetensors", "config.json", "generation_config.json"):
            (directory / name).unlink(missing_ok=True)
        auto_class.from_config(AutoConfig.for_model(model_type, **settings)).save_pretrained(directory)

    return make


def own_code(directory: Path) -> None:
    """An architecture that only code beside the weights knows; the code leaves a file behind where it runs."""
    code = "from pathlib import Path\nPath('code-was-run').touch()\n"
    (directory / "stranger.py").write_text(code)
    auto_map = {"AutoConfig": "stranger.StrangerConfig", "AutoModelForCausalLM": "stranger.Stranger"}
    change_json("config.json", model_type="stranger", auto_map=auto_map)(directory)


def own_tokenizer_code(directory: Path) -> None:
    """A tokenizer that only code beside it knows. With a tokenizer.json it would be read as any other."""
    (directory / "tokenizer.json").unlink()
    (directory / "stranger.py").write_text("from pathlib import Path\nPath('code-was-run').touch()\n")
    auto_map = {"AutoTokenizer": ["stranger.Stranger", "stranger.Stranger"]}
    change_json("tokenizer_config.json", tokenizer_class="Stranger", auto_map=auto_map)(directory)


# Ways to break config and weights of a tiny GPT-2, each with words that its refusal holds.
MODELS: dict[str, tuple[Break, str]] = {
    "config is a list": (write("config.json", b"[]"), "config.json"),
    "config is null": (write("config.json", b"null"), "config.json"),
    "config is a number": (write("config.json", b"7"), "config.json"),
    "config is empty": (write("config.json", b""), "config.json"),
    "config is no UTF-8": (write("config.json", b'{"model_type": "gpt2\xff"}'), "config.json"),
    "config is a directory": (replace_by_directory("config.json"), "config.json"),
    "config without a type": (change_json("config.json", model_type=..., architectures=...), "model_type"),
    "unknown type": (change_json("config.json", model_type="nothing"), "nothing"),
    "type is a number": (change_json("config.json", model_type=5), "model_type"),
    "numbers as strings": (change_json("config.json", n_layer="2"), "n_layer"),
    "unknown activation": (change_json("config.json", activation_function="quick"), "quick"),
    "no layers": (change_json("config.json", n_layer=-1), "n_layer"),
    "no heads": (change_json("config.json", n_head=0), "n_head"),
    "heads that do not divide": (change_json("config.json", n_head=3), "n"),
    "huge vocabulary": (change_json("config.json", vocab_size=10**12), "vocab_size"),
    "huge width": (change_json("config.json", n_embd=10**9, n_head=1), "1000000000"),
    "huge depth": (change_json("config.json", n_layer=10**9), "n_layer"),
    "other width": (change_json("config.json", n_embd=64), "[192] by its config"),
    "more layers than weights": (change_json("config.json", n_layer=3), "weights lack transformer.h."),
    "generation settings are a list": (write("generation_config.json", b"[]"), "generation_config.json"),
    "quantised": (change_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
    "quantised by nothing": (change_json("config.json", quantization_config={}), "quantization_config"),
    "own attention": (change_json("config.json", attn_implementation="stranger/attention"), "attn_implementation"),
    "own attention by its inner name": (
        change_json("config.json", text_config={"_attn_implementation": "stranger/attention"}),
        "_attn_implementation",
    ),
    "own code": (own_code, "auto_map"),
    "masked model": (foreign("bert", TINY_BERT, AutoModelForMaskedLM), "later tokens"),
    "sequence to sequence": (foreign("t5", TINY_T5, AutoModelForSeq2SeqLM), "is_encoder_decoder"),
    "weights are empty": (write("model.safetensors", b""), "model.safetensors"),
    "weights are truncated": (truncate("model.safetensors", 3000), "model.safetensors"),
    "weights are a directory": (replace_by_directory("model.safetensors"), "model.safetensors"),
    "weights are not there": (lambda directory: (directory / "model.safetensors").unlink(), "model.safetensors"),
    "index names missing shards": (index_missing_shards, "00002-of-00002"),
    "pickled code": (pickled_code, ".bin"),
}
# Ways to break its tokenizer.
TOKENIZERS: dict[str, tuple[Break, str]] = {
    "unknown model": (change_tokenizer(type="BPE2"), "tokenizer.json"),
    "tokenizer is a list": (write("tokenizer.json", b"[]"), "tokenizer.json"),
    "tokenizer is empty": (write("tokenizer.json", b""), "tokenizer.json"),
    "tokenizer is no UTF-8": (write("tokenizer.json", b'{"a": "\xff"}'), "tokenizer.json"),
    "tokenizer is a directory": (replace_by_directory("tokenizer.json"), "tokenizer.json"),
    "tokenizer settings are null": (write("tokenizer_config.json", b"null"), "tokenizer_config.json"),
    "tokenizer of own code": (own_tokenizer_code, "auto_map"),
}


def broken(whole: Path, directory: Path, how: Break) -> Path:
    """Return a copy of `whole` that is broken in one way."""
    shutil.copytree(whole, directory)
    how(directory)
    return directory
