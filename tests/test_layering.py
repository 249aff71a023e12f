"""What must stay true of the whole: who imports whom, how full a folder may be, and what each package offers."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.places import ROOT

# Each package from the ground up. A file imports its own wing and those before it; a row of several names is one
# storey, whose files may import each other.
STOREYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "storage": (
        ("errors", "progress", "command", "processes", "draws"),
        ("disk",),
        ("text",),
        ("rows",),
        ("records",),
        ("shards",),
        ("remote",),
        ("reading",),
        ("writing",),
        ("sharing",),
        ("importing",),
        ("pages",),
        ("report",),
        ("tensors",),
        ("cli", "__init__"),
    ),
    "pipeline": (
        ("config", "errors", "flags"),
        ("work",),
        ("sources",),
        ("corpus",),
        ("teacher",),
        ("vocabulary",),
        ("decoding",),
        ("producers",),
        ("plan", "job", "identity", "framing", "beginning"),
        ("engines",),
        ("cutting",),
        ("run", "estimate", "sampled_plan"),
        ("cli", "__init__"),
    ),
    "student": (
        ("config", "errors", "processes", "run_record", "model", "token_loop"),
        ("losses",),
        ("evaluation",),
        ("training",),
        ("generation",),
        ("export",),
        ("report",),
        ("loops",),
        ("cli", "__init__"),
    ),
}
OTHER_PACKAGES = {"storage": {"pipeline", "student"}, "pipeline": {"student"}, "student": {"pipeline"}}
# The one wing of storage in which torch may be imported; transformers may nowhere in it.
TORCH_WING = "tensors"
MOST_FILES = 14


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package in STOREYS:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imported_names(source: str) -> Iterator[str]:
    """Every name that an import statement, or a call of import_module, may load a module by, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def imports_of(module: str) -> set[str]:
    """Modules of the three packages that a module names; `from wing import file` names the file."""
    found = set(imported_names(MODULES[module].read_text())) & MODULES.keys()
    named_inside = {name.rpartition(".")[0] for name in found}
    is_only_a_way = {name for name in found if name in named_inside and not imports_from_face(module, name)}
    return found - is_only_a_way - {module}


def imports_from_face(module: str, face: str) -> bool:
    """Whether a module takes a name from a package's or wing's own __init__, not only files below it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == face:
            if any(f"{face}.{alias.name}" not in MODULES for alias in node.names):
                return True
        elif isinstance(node, ast.Import) and any(alias.name == face for alias in node.names):
            return True
    return False


def storey_of(module: str) -> int:
    """Index of a module's storey in its package."""
    package, *inside = module.split(".")
    first = inside[0] if inside else "__init__"
    (index,) = [i for i, names in enumerate(STOREYS[package]) if first in names]
    return index


def test_the_guard_sees_lazy_and_plain_imports() -> None:
    source = "import a.b\ndef f():\n    from c import d\n    import importlib\n    importlib.import_module('e')\n"
    assert set(imported_names(source)) == {"a.b", "c", "c.d", "importlib", "e"}


@pytest.mark.parametrize("package", STOREYS)
def test_every_file_has_a_storey_and_every_storey_a_file(package: str) -> None:
    inside = {
        module.split(".")[1] if "." in module else "__init__" for module in MODULES if module.split(".")[0] == package
    }
    assert inside == {name for storey in STOREYS[package] for name in storey}


@pytest.mark.parametrize("package", STOREYS)
def test_packages_import_in_one_direction(package: str) -> None:
    found = {
        (module, name)
        for module, file in MODULES.items()
        if module.split(".")[0] == package
        for name in imported_names(file.read_text())
        if name.partition(".")[0] in OTHER_PACKAGES[package]
    }
    assert not found


@pytest.mark.parametrize("package", STOREYS)
def test_nothing_imports_upwards(package: str) -> None:
    found = {
        f"{module} imports {name}"
        for module in MODULES
        if module.split(".")[0] == package
        for name in imports_of(module)
        if name.split(".")[0] == package and storey_of(name) > storey_of(module)
    }
    assert not found


def test_no_circle_between_files() -> None:
    graph = {module: imports_of(module) for module in MODULES}
    while ends := {module for module, names in graph.items() if not names & graph.keys()}:
        graph = {module: names for module, names in graph.items() if module not in ends}
    assert not graph, "these files import each other, or what does"


def test_storage_imports_torch_in_one_wing_and_transformers_nowhere() -> None:
    for module, file in MODULES.items():
        if module.split(".")[0] == "storage":
            heavy = {name.partition(".")[0] for name in imported_names(file.read_text())} & {"torch", "transformers"}
            assert heavy <= ({"torch"} if module.split(".")[1:2] == [TORCH_WING] else set()), module


def test_nothing_else_in_storage_imports_the_wing_of_torch() -> None:
    wing = f"storage.{TORCH_WING}"
    for module, file in MODULES.items():
        if module.split(".")[0] == "storage" and not module.startswith(wing):
            assert not any(name.startswith(wing) for name in imported_names(file.read_text())), module


def test_no_folder_is_too_full_to_be_read() -> None:
    for folder in {file.parent for file in MODULES.values()}:
        assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder


@pytest.mark.parametrize("folder", sorted({str(f.parent.relative_to(ROOT)) for f in MODULES.values()}))
def test_every_wing_says_what_lives_there(folder: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))


@pytest.mark.parametrize("package", STOREYS)
def test_the_picture_in_the_readme_shows_every_wing(package: str) -> None:
    (drawn,) = ElementTree.parse(ROOT / "docs" / "flow.svg").findall(f".//*[@data-package='{package}']")
    wings = {folder.parent.name for folder in (ROOT / package).glob("*/__init__.py")}
    assert sorted(text.text or "" for text in drawn.findall("*[@class='wing']")) == sorted(wings)


@pytest.mark.parametrize("package", STOREYS)
def test_tests_mirror_the_wings(package: str) -> None:
    for folder in (ROOT / "tests" / package).rglob("*"):
        if folder.is_dir() and any(folder.glob("test_*.py")):
            assert (ROOT / folder.relative_to(ROOT / "tests")).is_dir(), folder


@pytest.mark.parametrize("package", STOREYS)
def test_everything_in_all_is_there_and_sorted(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", STOREYS)
def test_every_module_can_be_imported_first(package: str) -> None:
    """Each in the order of names in one process; a circle would show in whichever comes first."""
    for name in MODULES:
        if name.split(".")[0] == package:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != "llama_cpp":  # the extra llama, which is compiled for minutes
                    raise


def test_no_program_of_scripts_imports_another() -> None:
    """A program imports its own folder, support and the packages; support imports no program."""
    for file in (ROOT / "scripts").rglob("*.py"):
        allowed = {file.relative_to(ROOT / "scripts").parts[0], "support"}
        for package, *inside in (name.split(".") for name in imported_names(file.read_text())):
            assert package != "tests", file
            assert package != "scripts" or not inside or inside[0] in allowed, (file, inside)
