"""The pages are true: their commands parse, their Python compiles, and the names, links and messages on them are there."""

import ast
import importlib
import pkgutil
import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tyro
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sfvlm.cli import COMMANDS, modules_of
from sfvlm.encoder.folder import image_processor, open_student
from sfvlm.zoo.names import resolve

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SCRIPTS = {  # the command that a script is
    "scripts/bootstrap_clip.py": "bootstrap",
    "scripts/swap_llava_tower.py": "swap",
    "scripts/convert_llava.py": "convert",
    "eval/zeroshot.py": "zeroshot",
    "eval/vqa.py": "vqa",
    "eval/fidelity.py": "fidelity",
    "eval/speed.py": "speed",
    "scripts/train_guide.py": "train-guide",
    "scripts/train_segmentation.py": "train-segmentation",
    "eval/segmentation.py": "segmentation",
}
BESIDE = {"weights", "commands"}  # rooms without a page of their own: the flags of commands have one

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def shell_lines(page: Path) -> list[list[str]]:
    """The commands of a page in words: continued lines joined, comments and what follows in a pipe left out."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def command_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The command of ours that a line calls, and what it is given; None for other programs."""
    if words[0] == "sfvlm":
        return words[1], words[2:]
    if words[0] == "torchrun" or words[:1] == ["python"]:
        for number, word in enumerate(words):
            if word in SCRIPTS:
                return SCRIPTS[word], words[number + 1 :]
    return None


def options(name: str) -> Any:
    assert name in COMMANDS, f"there is no command {name!r}"
    return getattr(importlib.import_module(modules_of(name)[0]), COMMANDS[name][0])


@cache
def flags(name: str) -> set[str]:
    parser = tyro.extras.get_parser(options(name), config=(tyro.conf.CascadeSubcommandArgs,))
    return {flag for action in parser._actions for flag in action.option_strings}


@each_page
def test_every_command_on_a_page_is_one_and_takes_what_it_is_given(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in shell_lines(page):
        called = command_of(words)
        if called is None or "--help" in called[1]:
            continue
        config, hands_on = (tyro.conf.CascadeSubcommandArgs,), called[0] == "serve"  # the engine's flags
        try:
            tyro.cli(options(called[0]), args=called[1], config=config, return_unknown_args=hands_on)
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")


@each_page
def test_scripts_targets_and_flags_that_a_page_names_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in shell_lines(page):
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets, words
        if words[0] in ("python", "torchrun"):
            assert all((ROOT / word).is_file() for word in words[1:] if re.match(r"(scripts|eval|demo)/", word)), words
        if words[:2] == ["python", "demo/app.py"]:
            fields = re.findall(r"^    (\w+): ", (ROOT / "demo/app.py").read_text(), re.M)
            given = [word[2:].replace("-", "_") for word in words if word.startswith("--")]
            assert set(given) <= set(fields), words
    for name, rest in re.findall(r"`sfvlm ([a-z]+)( [^`]*)?`", page.read_text()):
        assert set(re.findall(r"--[a-z][a-z.-]*", rest)) - {"--help"} <= flags(name), (name, rest)


@each_page
def test_the_python_on_a_page_compiles_and_imports_what_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sfvlm"):
                for alias in node.names:
                    pkgutil.resolve_name(f"{node.module}:{alias.name}")


def test_the_python_pages_run_on_the_shipped_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what needs another project's model or weights."""
    tower = open_student(resolve("sparseformer-tiny-49"))
    for name in ("sf49", "tower-49"):
        tower.save_pretrained(tmp_path / "runs" / name)
        image_processor(tower.config).save_pretrained(tmp_path / "runs" / name)
    Image.new("RGB", (400, 300), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    host = resolve("llava-tiny")
    llava, processor = AutoModelForImageTextToText.from_pretrained(host), AutoProcessor.from_pretrained(host)
    pixels = torch.rand(1, 3, 224, 224)
    names = {"llava": llava, "llava_processor": processor, "model": llava, "processor": processor}
    names |= {"pixels": pixels, "large_pixels": torch.rand(1, 3, 448, 448)}
    for page in ("llava.md", "python.md"):
        for block in blocks(DOCS / page, "python"):
            if not any(each in block for each in ("swap_open_clip", "load_official", "runs/llava-49")):
                exec(block, names)
    assert names["fast"].acceleration.how  # type: ignore[attr-defined]
    assert names["output"].token_rois[-1].shape == (1, 49, 4)  # type: ignore[attr-defined]


@each_page
def test_the_files_and_names_on_a_page_are_there(page: Path) -> None:
    text = page.read_text()
    files = {
        name for name in re.findall(r"[\w/]+/\w+\.(?:py|md|png|svg)\b", text) if not name.startswith(("runs/", "/"))
    }
    assert {
        name for name in files if not any((top / name).exists() for top in (ROOT, ROOT / "sfvlm", page.parent))
    } == set()
    for name in sorted(set(re.findall(r"\bsfvlm(?:\.\w+)+", text))):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_outside_the_site_lead_somewhere(page: Path) -> None:
    """Those of the site itself are held by `make docs`."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = ROOT / name if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_a_page_at_the_top_is_on_the_site_with_links_that_lead_there(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/hooks.py").write_text((DOCS / "hooks.py").read_text())
    text = "[a](docs/speed.md#x) [b](CHANGELOG.md) [c](README.md) [d](tests/tiny.py) [e](https://x.y/z.py) [f](#here)"
    (tmp_path / "CONTRIBUTING.md").write_text(text)
    hook = runpy.run_path(str(tmp_path / "docs/hooks.py"))["on_page_markdown"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="contributing.md"))
    assert hook("", page) == "[a](speed.md#x) [b](changelog.md) c d [e](https://x.y/z.py) [f](#here)"
    assert hook("own", SimpleNamespace(file=SimpleNamespace(src_uri="speed.md"))) == "own"


@each_page
def test_no_line_begins_with_a_marker_of_a_figure(page: Path) -> None:
    """Markdown would begin a block of HTML there, which cuts the paragraph in two."""
    assert re.findall(r"^ *<!-- figure.*", page.read_text(), re.M) == []


@each_page
def test_a_table_has_at_most_seven_columns(page: Path) -> None:
    for rule in re.findall(r"^\|[-:| ]+\|$", page.read_text(), re.M):
        assert rule.count("|") - 1 <= 7, rule


@cache
def sentences() -> str:
    """Every text in the code, with gaps where values go."""
    found = []
    for file in (ROOT / "sfvlm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(each.value) if isinstance(each, ast.Constant) else "\0" for each in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_messages_that_are_explained_are_said() -> None:
    messages = re.findall(r"^\*\*`(.+)`\*\*$", (DOCS / "trouble.md").read_text(), re.M)
    assert len(messages) > 30
    for message in messages:
        parts = [part.strip(" .:;,'()") for part in message.split("…")]
        assert [part for part in parts if part not in sentences()] == [], message


def test_every_room_and_every_command_is_in_the_reference() -> None:
    rooms = {path.name for path in (ROOT / "sfvlm").iterdir() if path.is_dir() and not path.name.startswith("_")}
    pages = {page.stem for page in (DOCS / "reference").glob("*.md")}
    assert rooms - BESIDE == pages - {"index", "commands"}
    for name in pages - {"index", "commands"}:
        assert f"::: sfvlm.{name}\n" in (DOCS / f"reference/{name}.md").read_text()
        assert f"reference/{name}.md" in (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^::: (sfvlm\.commands\.[\w.]+)\.(\w+)$", (DOCS / "reference/commands.md").read_text(), re.M)
    assert sorted(listed) == sorted((modules_of(name)[0], names[0]) for name, names in COMMANDS.items())
