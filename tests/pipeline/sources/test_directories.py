"""Directories as people leave them: hidden files, links, descriptions, saved data sets, and what cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from pipeline.errors import NoSuchDataError
from pipeline.sources.corpus import Corpus


def write(directory: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)


LEFT_OUT = {
    ".hidden.txt": "hidden",
    "._a.txt": "Mac OS X resource fork",
    ".ipynb_checkpoints/a-checkpoint.txt": "checkpoint",
    ".git/description.txt": "git",
    "__MACOSX/a.txt": "leftover",
    "LICENSE": "licence",
    "LICENSE.txt": "licence",
    "Readme.txt": "about the data",
    "README.md": "about the data",
    "nested/licence.de.txt": "licence",
    "dataset_infos.json": '{"default": {}}',
    "nested/dataset_info.json": '{"features": {}}',
    "other/state.json": '{"_data_files": []}',
}


def test_hidden_files_and_descriptions_are_no_text(
    read: Callable[..., list[str]], open_data: Callable[..., Corpus], tmp_path: Path
) -> None:
    write(tmp_path / "data", {"a.txt": "a", "nested/b.jsonl": '{"text": "b"}\n', "readme.jsonl": '{"text": "c"}\n'})
    fingerprint = open_data(tmp_path / "data").fingerprint
    write(tmp_path / "data", LEFT_OUT)
    assert read(tmp_path / "data") == ["a", "b", "c"]
    assert open_data(tmp_path / "data").fingerprint == fingerprint


def test_a_hidden_directory_that_is_named_is_read(read: Callable[..., list[str]], tmp_path: Path) -> None:
    write(tmp_path / ".cache", {"a.txt": "a"})
    assert read(tmp_path / ".cache") == ["a"]


def test_linked_directories_are_followed_once(read: Callable[..., list[str]], tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"c.txt": "c"})
    write(tmp_path / "data", {"a.txt": "a", "deep/b.txt": "b"})
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "deep")
    (tmp_path / "data" / "deep" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "linked_too").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "d.txt").symlink_to(tmp_path / "data" / "a.txt")
    assert read(tmp_path / "data") == ["a", "a", "b", "c"]


def test_what_looks_like_text_and_cannot_be_read_is_told(
    read: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"a.txt": "a", "b.txt.xz": "?", "c/d.XZ": "?", "e.csv": "?", "f.tar.gz": "?", "g.png": "?"})
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    assert read(tmp_path) == ["a"]
    told = capsys.readouterr().err
    assert told == (
        f"{tmp_path}: left out 1 .csv, 1 .tar, 1 .txt, 2 .xz (b.txt.xz, c/d.XZ, e.csv, f.tar.gz, gone.txt): "
        "no text, JSON, Parquet or Arrow file that can be read\n"
    )


@pytest.mark.parametrize("num_shards", [1, 3])
def test_saved_data_sets_are_read(read: Callable[..., list[str]], tmp_path: Path, num_shards: int) -> None:
    saved = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["one", None, "three"]})
    saved.save_to_disk(tmp_path / "saved", num_shards=num_shards)
    (tmp_path / "saved" / "cache-0123456789abcdef.arrow").write_bytes(b"what a later map() left")
    assert read(tmp_path / "saved") == ["one", "", "three"]
    assert read(tmp_path / "saved", text_column="text", max_tokens=5) == ["one", "", "three"]
    assert read(next((tmp_path / "saved").glob("data-*.arrow")))[0] == "one"


def test_of_saved_splits_train_is_read(read: Callable[..., list[str]], tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test", "validation")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    assert read(tmp_path / "all") == ["train"]
    assert read(tmp_path / "all" / "test") == ["test"]
    datasets.DatasetDict({"test": splits["test"]}).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == ["test"]
    datasets.DatasetDict({name: splits[name] for name in ("test", "validation")}).save_to_disk(tmp_path / "two")
    with pytest.raises(NoSuchDataError, match=r"holds the splits test, validation and no train; name one, as .*/SPLIT"):
        read(tmp_path / "two")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"_data_files": 3}', '{"_data_files": [{"name": "x"}]}'])
def test_a_damaged_record_of_saved_data(read: Callable[..., list[str]], tmp_path: Path, content: str) -> None:
    write(tmp_path, {"state.json": content, "dataset_info.json": "{}", "a.txt": "a"})
    with pytest.raises(NoSuchDataError, match=r"state\.json: is no record of saved data"):
        read(tmp_path)


def test_a_saved_file_that_is_missing(read: Callable[..., list[str]], tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["one"] * 3}).save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(NoSuchDataError, match=r"data-00001-of-00003\.arrow: is missing"):
        read(tmp_path / "saved")


@pytest.mark.parametrize(
    "name",
    ["d/c.csv", "d/unknown", "corpus.text", "data/my.jsonl.zst", "~/texts", "a/b/c", "/nowhere", "./x", "x.tar", "né"],
)
def test_a_mistyped_path_is_not_looked_up_on_the_hub(
    read: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(NoSuchDataError, match="no such file or directory"):
        read(name)


@pytest.mark.parametrize("name", ["a--b", "a..b"])
def test_a_name_that_the_hub_does_not_allow(read: Callable[..., list[str]], name: str) -> None:
    with pytest.raises(NoSuchDataError, match=r"has no commit on the hub: (Repo id|Cannot have)"):
        read(name)


@pytest.mark.parametrize("name", ["roneneldan/TinyStories", "wikitext:wikitext-2-raw-v1", "imdb", "user/data-v1.5"])
def test_hub_ids_are_looked_up_and_only_the_asked_columns_are_read(
    read: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "picture": datasets.Image()})
    no_picture = {"bytes": b"no picture", "path": None}
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "picture": [no_picture] * 2}, features=features)
    asked = []

    def load(path: str, *, name: str | None, **_: object) -> datasets.IterableDataset:
        asked.append((path, name))
        return rows.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("pipeline.sources.corpus._hub_commit", lambda *_: "0" * 40)
    assert read(name) == ["one", "two"]
    assert asked == [(name.split(":")[0], name.split(":")[1] if ":" in name else None)]


def test_the_state_of_a_saved_data_set_decides_its_files(
    read: Callable[..., list[str]], open_data: Callable[..., Corpus], tmp_path: Path
) -> None:
    """A set that is saved again in fewer files leaves the old ones."""
    datasets.Dataset.from_dict({"text": ["old"] * 4}).save_to_disk(tmp_path / "saved", num_shards=4)
    datasets.Dataset.from_dict({"text": ["new"]}).save_to_disk(tmp_path / "saved", num_shards=1)
    assert read(tmp_path / "saved") == ["new"]
    assert json.loads((tmp_path / "saved" / "state.json").read_text())["_data_files"]
    fingerprint = open_data(tmp_path / "saved").fingerprint
    os.truncate(next((tmp_path / "saved").glob("*-of-00004.arrow")), 3)
    assert open_data(tmp_path / "saved").fingerprint == fingerprint
