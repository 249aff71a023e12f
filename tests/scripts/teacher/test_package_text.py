"""What is kept of packages' docstrings, and what is found to be a copy."""

import json
from pathlib import Path

import pytest

from scripts.teacher import package_text
from scripts.teacher.licences import is_permissive
from scripts.teacher.package_text import sources_path, write_package_text
from scripts.teacher.prose import kept_prose
from scripts.teacher.repeats import SeenRuns
from storage.errors import ConfigError

STDLIB = """queue
Create a queue object with a given maximum size, and block all writers until there is a free slot in it again."""
OWN = "Wait until the server answers, then return its answer as a dictionary of plain strings."


def install(root: Path, name: str, licence: str, **modules: str) -> None:
    """Lay out a package as pip install --target does."""
    info = root / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: {licence}\n"
    )
    (root / name).mkdir()
    for module, docstring in modules.items():
        (root / name / f"{module}.py").write_text(f'def {module}(a, b=1):\n    """{docstring}"""\n')
    (info / "RECORD").write_text("".join(f"{name}/{module}.py,,\n" for module in modules))


@pytest.fixture
def gather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command on tmp_path/packages. Return the rows' texts, and their sources."""
    monkeypatch.setattr(package_text, "stdlib_documents", lambda: (STDLIB,))

    def run(*flags: str) -> tuple[list[str], list[dict[str, object]]]:
        out = tmp_path / "text.jsonl"
        arguments = ["--packages", str(tmp_path / "packages"), "--out", str(out), "--min-chars", "1", *flags]
        monkeypatch.setattr("sys.argv", ["package_text", *arguments])
        assert write_package_text() == 0
        rows = [json.loads(line)["text"] for line in out.read_text().splitlines()]
        return rows, json.loads(sources_path(out).read_text())

    return run


def test_a_vendored_copy_is_found_by_its_words(gather, tmp_path: Path) -> None:
    copy = STDLIB.partition("\n")[2].replace(", and", ",\n    AND")
    install(tmp_path / "packages", "mine", "MIT", backport=f"A queue of today.\n\n{copy}", client=OWN)
    rows, sources = gather()
    assert rows == [f"def client(a, b=1)\n{OWN}\n"]
    assert sources == [
        {"name": "mine", "version": "1.0", "licence": "MIT", "num_chars": len(rows[0]), "num_modules_like_stdlib": 1}
    ]


def test_repeats_copyleft_and_small_packages_are_left_out(gather, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    install(packages, "first", "MIT", client=OWN)
    install(
        packages,
        "other",
        "BSD-3-Clause",
        client=f"{OWN} Now.",
        reader="Read one line of the file at a time until it ends.",
    )
    install(packages, "small", "MIT", reader="Say in a few words what it is.")
    install(packages, "free", "GPL-3.0-or-later", writer="Write another line to the file and then close it at once.")
    rows, sources = gather("--min-chars", "60")
    assert [source["name"] for source in sources] == ["first", "other"]
    assert rows == [
        f"def client(a, b=1)\n{OWN}\n",
        "def reader(a, b=1)\nRead one line of the file at a time until it ends.\n",
    ]


def test_of_a_large_package_whole_modules_are_taken(gather, tmp_path: Path) -> None:
    modules = {
        f"m{i}": f"Return number {i} of this list of numbers, or of list {i * i} if it has more." for i in range(9)
    }
    install(tmp_path / "packages", "large", "MIT", **modules)
    every, _ = gather()
    rows, sources = gather("--max-chars", "400")
    assert len(every) == 9
    assert 0 < len(rows) < 9
    assert rows == [row for row in every if row in rows]
    assert sources[0]["num_chars"] == sum(map(len, rows)) <= 400


def test_packages_without_prose_are_one_line(gather, tmp_path: Path) -> None:
    install(tmp_path / "packages", "free", "GPL-3.0-or-later", client=OWN)
    with pytest.raises(ConfigError, match=r"packages: holds 1 packages, none with 1 characters of prose"):
        gather()


@pytest.mark.parametrize(
    "licence", ["MIT", "BSD License", "Apache-2.0 OR BSD-2-Clause", "Python Software Foundation License"]
)
def test_permissive_licences(licence: str) -> None:
    assert is_permissive(licence)


@pytest.mark.parametrize(
    "licence", ["", "LGPL-2.1", "MPL-2.0 AND MIT", "Proprietary", "BSD License; GNU General Public"]
)
def test_other_licences(licence: str) -> None:
    assert not is_permissive(licence)


def test_paragraphs_that_read_as_english_are_kept() -> None:
    docstring = """Return the mean of the values along an axis.

Parameters
----------
a : array_like
    The values whose mean is wanted by the caller.

    >>> mean([1, 2, 3])
    2.0

The mean is computed in the precision of its input, which may be too little for float16.

:param b: another one
+-----+-----+
| one | two |
"""
    assert kept_prose(docstring) == (
        "Return the mean of the values along an axis.\n\n    >>> mean([1, 2, 3])\n    2.0\n\n"
        "The mean is computed in the precision of its input, which may be too little for float16."
    )


@pytest.mark.parametrize(
    "docstring", ["", "Do it.", ">>> f(1)\n2", "Gibt den Wert zurück, der ähnlich früh übrig wäre.", "1 2 3 4"]
)
def test_docstrings_that_say_too_little_are_left_out(docstring: str) -> None:
    assert kept_prose(docstring) is None


def test_runs_of_words_are_counted_without_case_and_marks() -> None:
    seen = SeenRuns(3, ["One two, three four.\nFive"])
    assert seen.share_seen("TWO three - four") == 1
    assert seen.share_seen("two three four six") == 0.5
    assert seen.share_seen("four three two") == 0
    assert seen.share_seen("") == 0
