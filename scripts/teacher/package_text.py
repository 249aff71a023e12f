"""Write the docstrings of installed packages as JSON lines, without what they repeat of the standard library's.

    python -m scripts.teacher.package_text --packages PACKAGES --out build/docstrings.jsonl

A row is a module. A module that has a run of 12 words in common with a docstring of the standard library of the Python
that runs this is left out: backports and vendored copies are. Of a docstring, the paragraphs that read as English are
kept; docstrings that mostly repeat others are left out. Beside the rows, OUT.sources.json says which packages they are
from and what was left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path

import tyro

from pipeline.sources.stdlib_corpus import module_docstrings, stdlib_documents
from scripts.teacher.licences import is_permissive, licence_of
from scripts.teacher.prose import kept_prose
from scripts.teacher.repeats import SeenRuns
from storage.command import run_command
from storage.disk.files import write_file
from storage.errors import ConfigError
from storage.progress import Progress

_STDLIB_RUN_WORDS = 12
_REPEATED_RUN_WORDS = 8
_MAX_REPEATED_SHARE = 0.5
_MAX_HEADING_CHARS = 200
SOURCE_FACTS = ("name", "version", "licence", "num_chars", "num_modules_like_stdlib")
_TESTS_AND_COPIES = {"test", "tests", "testing", "_vendor"}


@dataclass(frozen=True, kw_only=True)
class PackageTextConfig:
    """Settings of a text of docstrings."""

    packages: Path
    """Directory that packages are installed in, such as a site-packages or the --target of pip install."""
    out: Path
    """File to write, .jsonl."""
    min_chars: int = 100_000
    """Leave out a package with less text."""
    max_chars: int = 1_200_000
    """Take at most this much of a package: whole modules, chosen by hash."""


@dataclass(kw_only=True)
class Package:
    """A package and its modules' texts. num_modules_like_stdlib: modules left out as copies."""

    name: str
    version: str
    licence: str
    num_modules_like_stdlib: int = 0
    modules: list[str] = field(default_factory=list)

    @property
    def num_chars(self) -> int:
        """Characters of all modules."""
        return sum(map(len, self.modules))


def main() -> None:
    """Run the command."""
    run_command(write_package_text)


def write_package_text() -> int:
    """Write the rows and their sources. Raise ConfigError when no package has text enough and a permissive licence."""
    config = tyro.cli(PackageTextConfig, description=__doc__)
    packages = list(_read_packages(config.packages))
    taken = [each for each in packages if is_permissive(each.licence) and each.num_chars >= config.min_chars]
    if not taken:
        raise ConfigError(
            f"--packages {config.packages}: holds {len(packages)} packages, none with {config.min_chars:,} characters "
            "of prose and a permissive licence; install some with pip install --target"
        )
    for package in taken:
        package.modules = _at_most(package.modules, config.max_chars)
    rows = "".join(json.dumps({"text": text}) + "\n" for package in taken for text in package.modules)
    write_file(config.out, rows.encode())
    sources = [{name: getattr(package, name) for name in SOURCE_FACTS} for package in taken]
    write_file(sources_path(config.out), json.dumps(sources, indent=1).encode())
    return 0


def sources_path(text: Path) -> Path:
    """Return the file that says which packages the rows of `text` are from."""
    return text.with_name(f"{text.name}.sources.json")


def _read_packages(root: Path) -> Iterator[Package]:
    """Yield every package, in order of its name. What one says is left out of later ones."""
    of_stdlib = SeenRuns(_STDLIB_RUN_WORDS, stdlib_documents())
    of_others = SeenRuns(_REPEATED_RUN_WORDS)
    found = sorted(distributions(path=[str(root)]), key=lambda each: each.name.lower())
    with Progress(len(found), "read docstrings", "packages") as bar:
        for distribution in found:
            yield _read_package(distribution, of_stdlib, of_others)
            bar.update(1)


def _read_package(distribution: Distribution, of_stdlib: SeenRuns, of_others: SeenRuns) -> Package:
    package = Package(name=distribution.name, version=distribution.version, licence=licence_of(distribution))
    for path in _modules(distribution):
        docstrings = list(module_docstrings(path))
        if docstrings and of_stdlib.share_seen("\n\n".join(docstrings)) > 0:
            package.num_modules_like_stdlib += 1
            continue
        kept = list(_kept(docstrings, of_others))
        if kept:
            package.modules.append("\n\n".join(kept) + "\n")
    return package


def _modules(distribution: Distribution) -> Iterator[Path]:
    for file in sorted(map(str, distribution.files or [])):
        path = Path(str(distribution.locate_file(file)))
        if path.suffix == ".py" and _TESTS_AND_COPIES.isdisjoint(file.split("/")) and path.is_file():
            yield path


def _kept(docstrings: list[str], of_others: SeenRuns) -> Iterator[str]:
    for entry in docstrings:
        heading, _, docstring = entry.partition("\n")
        prose = kept_prose(docstring) if len(heading) <= _MAX_HEADING_CHARS else None
        if prose is not None and of_others.share_seen(prose) <= _MAX_REPEATED_SHARE:
            of_others.add(prose)
            yield f"{heading}\n{prose}"


def _at_most(modules: list[str], max_chars: int) -> list[str]:
    """Return modules of together at most `max_chars`, chosen by hash, in their order."""
    chosen, num_chars = set(), 0
    for index in sorted(range(len(modules)), key=lambda index: hashlib.sha256(modules[index].encode()).digest()):
        num_chars += len(modules[index])
        if num_chars > max_chars:
            break
        chosen.add(index)
    return [text for index, text in enumerate(modules) if index in chosen]


if __name__ == "__main__":
    main()
