"""The house itself: rooms of a size one can keep in mind, each with a door that says what it is, and tests that mirror them."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "sfvlm", ROOT / "tests"
FOLDERS = sorted(
    {file.parent for file in PACKAGE.rglob("*.py")} - {PACKAGE}
)  # of modules: the shipped weights have none
ROOMS = [folder for folder in FOLDERS if folder.parent == PACKAGE]
UNTESTED = ("commands",)  # their tests lie with the rooms whose work they start

each_folder = pytest.mark.parametrize("folder", [pytest.param(each, id=each.name) for each in FOLDERS])
each_room = pytest.mark.parametrize("room", [pytest.param(each, id=each.name) for each in ROOMS])


def modules(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def door(folder: Path) -> ast.Module:
    return ast.parse((folder / "__init__.py").read_text())


def layers() -> list[str]:
    """The names in import-linter's layers of the package."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each["type"] == "layers")
    return [name.strip() for layer in contract["layers"] for name in layer.split("|")]


def test_at_most_four_modules_lie_outside_the_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 4


@each_folder
def test_a_room_has_4_to_13_modules(folder: Path) -> None:
    assert 4 <= len(modules(folder)) <= 13, modules(folder)


@each_folder
def test_no_module_repeats_the_name_of_its_room(folder: Path) -> None:
    beginnings = (f"{folder.name}_", f"{folder.name.removesuffix('s')}_")
    assert not [name for name in modules(folder) if name.startswith(beginnings) or name == folder.name]


@each_folder
def test_the_door_of_a_room_is_a_docstring_and_nothing_else(folder: Path) -> None:
    assert len(door(folder).body) == 1 and ast.get_docstring(door(folder))


@each_room
def test_the_door_says_in_a_few_lines_what_comes_in_what_goes_out_and_whom_the_room_knows(room: Path) -> None:
    text = ast.get_docstring(door(room)) or ""
    assert 3 <= len(text.splitlines()) <= 10
    assert all(part in text for part in ("In: ", "Out: ", "knows"))


def test_tests_mirror_the_rooms() -> None:
    folders = {file.parent.relative_to(TESTS).as_posix() for file in TESTS.rglob("*.py")} - {"."}
    assert folders - {"demo"} <= {folder.relative_to(PACKAGE).as_posix() for folder in FOLDERS}
    assert {room.name for room in ROOMS} - folders <= set(UNTESTED)


def test_import_linter_knows_every_room_and_nothing_else() -> None:
    assert sorted(layers()) == sorted([room.name for room in ROOMS] + modules(PACKAGE))
