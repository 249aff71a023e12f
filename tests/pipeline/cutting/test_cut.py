"""teachonce-cut: what it writes is what it planned, loads again, and trains; what cannot be is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import pipeline
import student
from pipeline import CutConfig, cli
from pipeline.cutting.importance import layer_importance
from pipeline.cutting.record import read_record, render
from pipeline.errors import CutTakenError, ForeignTokenizerError, UncuttableTeacherError
from storage import Cache
from storage.errors import ConfigError
from storage.rows.soft_targets import decode

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(scope="module")
def llama(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of four layers with bfloat16 weights and the tokenizer of the session's teacher."""
    directory = tmp_path_factory.mktemp("llama") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=None, eos_token_id=256,
        dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(directory)
    helpers.make_tokenizer(directory)
    (directory / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    return directory


def config_of(teacher: Path, out: Path, **changes: Any) -> CutConfig:
    return CutConfig(**({"teacher": str(teacher), "out": out, "device": "cpu", "quiet": True} | changes))


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()


def test_a_cut_with_all_layers_is_the_teacher(llama: Path, tmp_path: Path) -> None:
    pipeline.cut(config_of(llama, tmp_path / "cut", layers="4"))
    whole, same = loaded(llama), loaded(tmp_path / "cut")
    assert {name: weight.dtype for name, weight in same.state_dict().items()} == {
        name: weight.dtype for name, weight in whole.state_dict().items()
    }
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in same.state_dict().items())
    with torch.no_grad():
        assert torch.equal(same(input_ids=IDS).logits, whole(input_ids=IDS).logits)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "cut").get_vocab() == AutoTokenizer.from_pretrained(llama).get_vocab()
    )


@pytest.mark.parametrize("changes", [{"layers": "2"}, {"layers": "0,3"}, {"layers": "3,", "keep_mlp": 0.5}])
def test_a_plan_says_what_is_then_written(llama: Path, cache: Cache, tmp_path: Path, changes: dict[str, Any]) -> None:
    text = {"cache": str(cache.path)} if "keep_mlp" in changes else {}
    config = config_of(llama, tmp_path / "cut", **changes, **text)
    planned = pipeline.cut(dataclasses.replace(config, plan=True))
    assert not config.out.exists()
    assert pipeline.cut(config) == planned == read_record(config.out)
    model = loaded(config.out)
    assert planned.after.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert planned.after.weights_bytes == sum(weight.nbytes for weight in model.parameters())
    assert planned.before.num_parameters == sum(weight.numel() for weight in loaded(llama).parameters())
    assert f"→ {planned.after.num_parameters:,}" in render(planned)
    card = (config.out / "README.md").read_text()
    assert json.loads(card.split("---")[1])["license"] == "mit"
    command = next(line for line in card.splitlines() if line.startswith("- Command: "))
    assert command.removeprefix("- Command: ").startswith(f"`teachonce-cut llama --layers {changes['layers']} ")
    assert command.endswith(" --out cut`")
    assert str(tmp_path) not in card + (config.out / "cut.json").read_text()
    assert list(tmp_path.iterdir()) == [config.out]


def test_importance_of_layers_over_the_blocks_of_a_cache(teacher_dir: Path, cache: Cache, tmp_path: Path) -> None:
    text: dict[str, Any] = {"by": "importance", "cache": str(cache.path), "max_tokens": 650}
    record = pipeline.cut(config_of(teacher_dir, tmp_path / "cut", layers="1", **text))
    batches, left = [], 20
    for batch in cache.record_batches("soft_targets", "train"):
        rows = decode(batch)
        ids, positions = (
            torch.from_numpy(part[:left, :32].astype("int64")) for part in (rows.input_ids, rows.positions)
        )
        batches.append((ids, positions))
        left -= len(ids)
        if not left:
            break
    expected = layer_importance(loaded(teacher_dir), batches)
    assert record.layers["importance"] == pytest.approx(expected, rel=1e-4)
    assert record.layers["kept"] == [expected.index(max(expected))]
    assert record.text == {"cache": cache.path.name, "rows_sha256": cache.rows_sha256, "num_tokens": 640}


def test_width_by_a_text_file_and_training_from_it(llama: Path, text_file: Path, cache: Cache, tmp_path: Path) -> None:
    settings = {"keep_mlp": 0.5, "keep_heads": 0.5, "data": str(text_file), "block_size": 32, "max_tokens": 1000}
    record = pipeline.cut(config_of(llama, tmp_path / "cut", layers="0,2", document_separator="\\n", **settings))
    assert record.neurons is not None
    assert record.heads is not None
    assert [len(kept) for kept in record.neurons["kept"]] == [24, 24]
    assert all(kept in ([0, 1], [2, 3]) for kept in record.heads["kept"])
    config = loaded(tmp_path / "cut").config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    train = student.TrainConfig(
        cache=cache.path, out=tmp_path / "run", preset=str(tmp_path / "cut"), max_steps=2, device="cpu", quiet=True
    )
    student.train(train)
    assert loaded(tmp_path / "run").config.num_hidden_layers == 2


@pytest.mark.parametrize("num_bytes", [None, -1, 5])
def test_a_cut_that_has_lost_weights_is_not_finished(teacher_dir: Path, tmp_path: Path, num_bytes: int | None) -> None:
    config = config_of(teacher_dir, tmp_path / "cut", layers="1")
    pipeline.cut(config)
    weights = config.out / "model.safetensors"
    if num_bytes is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:num_bytes])
    with pytest.raises(CutTakenError, match="a cut that does not load"):
        pipeline.cut(config)


def test_a_plan_refuses_what_the_cut_would_refuse(teacher_dir: Path, tmp_path: Path) -> None:
    config = config_of(teacher_dir, tmp_path / "cut", layers="1", plan=True)
    config.out.mkdir()
    (config.out / "something").touch()
    with pytest.raises(CutTakenError, match="without a cut"):
        pipeline.cut(config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"keep_heads": 0.75}, "--keep-heads 0.75: of 4 heads in 2 groups that is, rounded, all"),
        ({"keep_mlp": 0.99}, "--keep-mlp 0.99: of 48 neurons that is, rounded, all"),
    ],
)
def test_a_share_that_would_keep_all_is_refused(
    llama: Path, cache: Cache, tmp_path: Path, changes: dict[str, float], named: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        pipeline.cut(config_of(llama, tmp_path / "cut", cache=str(cache.path), **changes))


def test_a_second_run_leaves_what_is_there(
    teacher_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], helpers: ModuleType
) -> None:
    teacher = shutil.copytree(teacher_dir, tmp_path / "teacher")
    config = config_of(teacher, tmp_path / "cut", layers="1")
    record = pipeline.cut(config)
    before = {path.name: path.stat().st_mtime_ns for path in config.out.iterdir()}
    assert pipeline.cut(config) == record
    assert "is there already" in capfd.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in config.out.iterdir()} == before
    with pytest.raises(CutTakenError, match="holds a cut with layers '1', and now it is '2'"):
        pipeline.cut(dataclasses.replace(config, layers="2"))
    helpers.make_teacher(teacher, seed=1)
    with pytest.raises(CutTakenError, match="out of other weights"):
        pipeline.cut(config)


def test_what_does_not_load_again_is_not_published(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_weights(*args: Any, **options: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(args[1])
        torch.nn.init.ones_(model.transformer.h[0].mlp.c_fc.weight)
        return model

    monkeypatch.setattr("pipeline.cutting.cut.load_checkpoint", other_weights)
    with pytest.raises(UncuttableTeacherError, match="computes something else"):
        pipeline.cut(config_of(teacher_dir, tmp_path / "cut", layers="1"))
    assert list(tmp_path.iterdir()) == []


def test_a_cache_of_other_tokens_is_refused(teacher_dir: Path, cache: Cache, tmp_path: Path) -> None:
    teacher = shutil.copytree(teacher_dir, tmp_path / "teacher")
    content = json.loads((teacher / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (teacher / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ForeignTokenizerError, match="is 'a', and 'b' to the teacher"):
        pipeline.cut(config_of(teacher, tmp_path / "cut", layers="1", by="importance", cache=str(cache.path)))


WRONG = {
    "no layer": (["--layers", "3"], "--layers 3: the teacher has 2 layers, 0 to 1; ask for some of these"),
    "no such layer": (["--layers", "0,7"], "--layers 0,7: the teacher has 2 layers, 0 to 1; ask for some of these"),
    "twice": (["--layers", "1,1"], "--layers 1,1: names layer 1 twice; a layer can be kept once"),
    "none": (["--layers", "0"], "--layers 0 keeps no layer"),
    "words": (["--layers", "half"], "--layers is 'half', expected a number of layers, or numbers as in 0,2,4"),
    "many digits": (["--layers", "9" * 5000], "expected a number of layers, or numbers as in 0,2,4"),
    "two zeros": (["--layers", "00"], "--layers is '00', expected a number of layers, or numbers as in 0,2,4"),
    "share": (["--keep-mlp", "1.5"], "--keep-mlp is 1.5, expected a share above 0 and at most 1"),
    "nothing": ([], "nothing to cut: give --layers, --keep-mlp or --keep-heads"),
    "no text": (["--layers", "1", "--by", "importance"], "--by importance: only a text shows what matters"),
    "no text for width": (["--keep-mlp", "0.5"], "only a text shows what matters; give --cache CACHE or --data D"),
    "needless text": (["--layers", "1", "--data", "stdlib"], "--cache and --data are read only for --by importance"),
    "two texts": (["--layers", "1", "--data", "stdlib", "--cache", "c"], "--cache and --data are both given"),
    "chosen twice": (["--layers", "0,1", "--by", "importance", "--data", "stdlib"], "--by importance chooses layers"),
    "no cache": (["--layers", "1", "--by", "importance", "--cache", "nowhere"], "nowhere"),
    "heads": (["--keep-heads", "0.5", "--data", "stdlib"], "a gpt2 config states no width of a head"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_get_one_line(
    case: str, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flags, expected = WRONG[case]
    arguments = [str(teacher_dir), "--out", str(tmp_path / "cut"), "--device", "cpu", "--quiet", *flags]
    monkeypatch.setattr(sys, "argv", ["teachonce-cut", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.cut()
    assert done.value.code == 2
    errors = capfd.readouterr().err
    assert expected in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "cut").exists()


def test_nobody_is_told_to_remove_the_teacher(teacher_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(teacher_dir)
    for out in (teacher_dir, tmp_path / "link"):
        with pytest.raises(ConfigError, match=r"is the teacher; name another directory$"):
            pipeline.cut(config_of(teacher_dir, out, layers="1"))


def test_what_is_somebody_elses_is_left_alone(teacher_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cut.json").write_text('{"kept": "all"}')
    for out in (tmp_path, tmp_path / "thesis.txt", tmp_path / "other"):
        with pytest.raises(CutTakenError, match=r"something without a cut\.json"):
            pipeline.cut(config_of(teacher_dir, out, layers="1"))
    (tmp_path / "empty").mkdir()
    assert pipeline.cut(config_of(teacher_dir, tmp_path / "empty", layers="1")).layers["kept"] == [0]


@pytest.mark.parametrize(
    "damage",
    [{"settings": None}, {"teacher": {}}, {"layers": []}, {"after": {"num_parameters": "", "weights_bytes": 1}}],
)
def test_a_damaged_record_is_none(teacher_dir: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    record: dict[str, Any] = {
        "teacher": {"id": "t", "revision": None, "architecture": "A", "licence": None, "weights_sha256": "0"},
        "settings": {"teacher": "t", "layers": "1"}, "text": None,
        "layers": {"kept": [0], "of": 2, "importance": None}, "neurons": None, "heads": None, "dtype": "float32",
        "before": {"num_parameters": 2, "weights_bytes": 8}, "after": {"num_parameters": 1, "weights_bytes": 4},
        "software": {},
    }  # fmt: skip
    (tmp_path / "cut.json").write_text(json.dumps(record))
    assert read_record(tmp_path) is not None
    (tmp_path / "cut.json").write_text(json.dumps(record | damage))
    with pytest.raises(CutTakenError, match=r"something without a cut\.json"):
        pipeline.cut(config_of(teacher_dir, tmp_path, layers="1"))
