"""Pages and results agree: every figure, table and plot that is shown comes from a file in results/."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from pages.building import Writer, build, check, pages_of  # noqa: E402
from pages.figures import FIGURES  # noqa: E402
from pages.files import Results, at, committed  # noqa: E402
from pages.forms import markdown, with_interval  # noqa: E402
from pages.markers import filled, places, unmarked, wide_tables  # noqa: E402
from pages.plots import PLOTS  # noqa: E402
from pages.tables import TABLES  # noqa: E402

FILES = committed(ROOT / "results")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The pages, results and pictures of this checkout, to be changed."""
    for page in pages_of(ROOT):
        target = tmp_path / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, target)
    for file in FILES:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    shutil.copytree(ROOT / "docs/images", tmp_path / "docs/images")
    return tmp_path


def changed(content: Any) -> Any:
    """The same with every number that is no count another one."""
    if isinstance(content, dict):
        return {key: changed(value) for key, value in content.items()}
    if isinstance(content, list):
        return [changed(value) for value in content]
    return 1.37 * content + 0.01 if isinstance(content, float) else content


def test_pages_say_what_the_files_say() -> None:
    check(ROOT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_other_numbers_in_a_file_are_noticed_by_page_and_name(file: Path, copy: Path) -> None:
    name = file.relative_to(ROOT / "results").as_posix()
    path = copy / "results" / name
    path.write_text(json.dumps(changed(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match="disagree") as caught:
        check(copy)
    told = str(caught.value).splitlines()[1:]
    assert any(f"results/{name}" in line and (": the table " in line or ": the figure " in line) for line in told), told


def test_a_plot_drawn_from_other_numbers_is_noticed_and_drawn_again(copy: Path) -> None:
    for file in committed(copy / "results"):
        file.write_text(json.dumps(changed(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match="disagree") as caught:
        check(copy)
    assert all(f"docs/images/{name}.png was drawn from other numbers" in str(caught.value) for name in PLOTS)
    build(copy)
    check(copy)


def test_what_nobody_shows_is_told(copy: Path) -> None:
    (copy / "results/swap/idle.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results/swap/idle\.json is used by nothing"):
        check(copy)


def test_a_page_with_an_unknown_name_is_told(copy: Path) -> None:
    (copy / "docs/new.md").write_text("So <!-- figure: no-such -->?<!-- end --> it is.\n")
    with pytest.raises(ValueError, match=r"docs/new\.md: no figure is called no-such"):
        build(copy)
    (copy / "docs/new.md").write_text("So <!-- table: swap --> it is.\n")
    with pytest.raises(ValueError, match=r"docs/new\.md: the marker swap has no <!-- end -->"):
        check(copy)


def test_a_missing_file_is_told_for_each_place_that_shows_it(copy: Path) -> None:
    (copy / "results/swap/retained.json").unlink()
    with pytest.raises(ValueError, match=r"results/swap/retained\.json is missing"):
        check(copy)


def test_every_name_is_made_of_some_file() -> None:
    write = Writer(ROOT)
    for kind, known in (("figure", FIGURES), ("table", TABLES)):
        for name in known:
            assert write(kind, name)
            assert write.files[kind, name], name


def test_files_name_no_folder_of_a_machine_and_say_how_they_came_about() -> None:
    for file in FILES:
        content = json.loads(file.read_text())
        assert content.keys() >= {"command", "machine", "date", "versions"}, file
        text = file.read_text()
        assert not any(top in text for top in ("/home/", "/work/", "/root/", "/tmp/", "/Users/")), file
    assert sum(file.stat().st_size for file in FILES) < 2_000_000


def test_markers_in_code_are_examples() -> None:
    page = "`<!-- figure: a -->1<!-- end -->`\n```\n<!-- table: b -->\n```\n<!-- figure: c -->?<!-- end -->.\n"
    assert [(place.kind, place.name, place.text) for place in places(page)] == [("figure", "c", "?")]
    assert filled(page, lambda kind, name: "7 %") == page.replace("?", "7 %")


def test_a_table_takes_the_lines_between_its_markers() -> None:
    page = "before\n<!-- table: t -->\nold\n<!-- end -->\nafter\n"
    assert filled(page, lambda kind, name: "| a |\n|---|") == page.replace("old", "| a |\n|---|")


def test_measured_figures_outside_of_markers_are_found() -> None:
    row, prose = "| way | 97.7 % |", "It keeps 97.7 % of it."
    assert list(unmarked(f"| a | b |\n|---|---|\n{row}\n\n{prose}\nIn 37 ms.\n")) == [row, prose, "In 37 ms."]
    given = "<!-- given: settings of the shipped tower -->\n| flag | value |\n|---|---|\n| `--rate` | 0.1 |\n"
    assert list(unmarked(given)) == []
    assert list(unmarked(f"<!-- given: counted -->\n\n{prose}\nAnd 1.5 % more.\n\n{prose}\n")) == [prose]
    assert (
        list(unmarked("| a |\n|---|\n| up to 49 tokens |\n| Python 3.11 |\n| `0.5` of them |\n\nA 95 % interval.\n"))
        == []
    )
    assert list(unmarked("<!-- figure: f -->97.7 %<!-- end --> and `1.5 %`")) == []


def test_tables_have_at_most_seven_columns() -> None:
    head = "| a | b | c | d | e | f | g | h |"
    assert list(wide_tables(f"{head}\n{'|---' * 8}|\n")) == [head]
    assert list(wide_tables(f"{head[:-4]}\n{'|---' * 7}|\n")) == []
    with pytest.raises(ValueError, match="at most 7"):
        markdown([list("abcdefgh")])


def test_a_path_finds_what_lies_in_a_file(tmp_path: Path) -> None:
    content = {"results": [{"model": "a", "n": {"x": 1}}, {"model": "b@49", "n": {"x": 2}}]}
    assert at(content, "results[model=b@49].n.x") == 2
    (tmp_path / "topic").mkdir()
    (tmp_path / "topic/file.json").write_text(json.dumps(content))
    results = Results(tmp_path)
    assert results("topic/file.json", "results[model=a].n") == {"x": 1}
    with pytest.raises(ValueError, match=r"results/topic/file\.json has nothing at results\[model=c\]: no model is c"):
        results("topic/file.json", "results[model=c]")
    assert results.names() == ["topic/file.json"]


def test_intervals_are_written_with_their_number() -> None:
    assert with_interval({"value": 0.977, "low": 0.957, "high": 1.001}) == "97.7 (95.7 to 100.1)"
    assert with_interval({"cider_d": 0.3412, "cider_d_low": 0.3, "cider_d_high": 0.4}, "cider_d", "{:.3f}", 1) == (
        "0.341 (0.300 to 0.400)"
    )
