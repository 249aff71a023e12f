"""Links inside a cache are followed to files whose bytes are as recorded, and to nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage import open_cache, verify_cache
from storage.errors import HashMismatchError, LinkTargetError, MissingFileError, RecordError, TeachonceError
from tests.storage.links import LAYOUTS, Lay, kept_elsewhere
from tests.storage.reading.forging import FIRST
from tests.storage.reading.readers import READERS, Watch, bounded, errors_of

SOFT = FIRST["soft_targets"]
SECRETS = {
    "a key": b"TOP-SECRET-3f9a\n",
    "a JSON object": b'{"password": "TOP-SECRET"}',
    "a JSON list": b'["TOP-SECRET"]',
    "broken JSON": b'{"password": TOP-SECRET',
    "a number": b"NaN TOP-SECRET",
}


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_what_a_tool_laid_is_read_as_the_files_are(stranger: Path, tmp_path: Path, lay: Lay) -> None:
    linked = lay(stranger, tmp_path / "elsewhere")
    before = kept_elsewhere(linked)
    assert len(before) > 10
    for name, read in READERS.items():
        assert errors_of(read, linked) == [], name
    assert open_cache(linked).manifest == open_cache(stranger).manifest
    for kind in FIRST:
        batches = zip(*(open_cache(path).record_batches(kind, "train") for path in (linked, stranger)), strict=True)
        assert all(one.equals(other) for one, other in batches)
    assert kept_elsewhere(linked) == before


@pytest.mark.parametrize("name", [SOFT, "README.md", "tokenizer/tokenizer.json", "commits/samples-train-00000.json",
                                  "plan.json"])  # fmt: skip
def test_a_link_to_a_file_that_is_not_there_names_that_file(stranger: Path, name: str) -> None:
    (stranger / name).unlink()
    (stranger / name).symlink_to("../gone")
    [problem] = verify_cache(stranger).problems
    assert isinstance(problem, LinkTargetError)
    assert str(problem).startswith(f"{stranger / name}: a link to '")
    assert problem.target == str((stranger / name).parent.parent / "gone")


def test_a_manifest_that_is_not_there_is_not_an_unfinished_cache(stranger: Path) -> None:
    (stranger / "manifest.json").unlink()
    (stranger / "manifest.json").symlink_to("../gone")
    with pytest.raises(LinkTargetError, match=r"git annex get"):
        open_cache(stranger)


def test_a_shard_missing_from_a_linked_directory_is_missing(stranger: Path, tmp_path: Path) -> None:
    linked = LAYOUTS["by hand"](stranger, tmp_path / "elsewhere")
    (linked / SOFT).resolve().unlink()
    [problem] = verify_cache(linked).problems
    assert type(problem) is MissingFileError


def test_other_bytes_behind_a_link_are_refused(stranger: Path, tmp_path: Path) -> None:
    linked = LAYOUTS["dvc"](stranger, tmp_path / "elsewhere")
    target = (linked / SOFT).resolve()
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    [problem] = verify_cache(linked).problems
    assert type(problem) is HashMismatchError


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize(
    "name", ["manifest.json", "plan.json", "commits/soft_targets-train-00000.json", "README.md", SOFT,
             "tokenizer/tokenizer.json"],
)  # fmt: skip
def test_what_a_stranger_s_link_leads_to_is_never_shown(
    stranger: Path, tmp_path: Path, name: str, secret: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_bytes(secret)
    (stranger / name).unlink()
    (stranger / name).symlink_to(tmp_path / "key")
    found: list[TeachonceError] = []
    for reader in ("verify", "inspect", "head", "batches"):
        with bounded():
            found += errors_of(READERS[reader], stranger)
    assert {type(error) for error in found} <= {RecordError, HashMismatchError}
    assert found
    told = "".join(capfd.readouterr()) + "".join(map(str, found))
    assert "SECRET" not in told
    assert "\n" not in "".join(map(str, found))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here")
@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "commits/beams-train-00000.json", SOFT, "README.md"])
@pytest.mark.parametrize("target", ["/proc/self/environ", "/proc/kmsg"])
def test_files_of_the_system_that_say_that_they_are_empty_are_not_opened(
    stranger: Path, name: str, target: str, watch: Watch
) -> None:
    (stranger / name).unlink()
    (stranger / name).symlink_to(target)
    with bounded(), watch.on(Path("/proc")) as seen:
        assert [type(error) for error in errors_of(verify_cache, stranger)] == [LinkTargetError]
    assert [path for path in seen if path.endswith(Path(target).name)] == []


def test_an_empty_file_below_a_linked_directory_is_not_opened_either(
    stranger: Path, forge: SimpleNamespace, watch: Watch
) -> None:
    (stranger / "notes").symlink_to("/proc")
    empty = {"path": "notes/kmsg", "file_bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    forge.record(stranger / "manifest.json", lambda manifest: manifest["files"].append(empty))
    with bounded(), watch.on(Path("/proc")) as seen:
        assert LinkTargetError in [type(problem) for problem in verify_cache(stranger).problems]
    assert [path for path in seen if path.endswith("kmsg")] == []
