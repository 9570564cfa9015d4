"""The page: nothing outside of it, everything on it, and what people and models write stays text."""

import base64
import html
import io
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_makes import recipe

from sfvlm import cli
from sfvlm.make.held_back import hold_back
from sfvlm.make.place import Place, open_place
from sfvlm.make.report import write_report
from sfvlm.make.tower import check_fit
from sfvlm.photos.sources import names_hash, open_photos

VOID = {"meta", "img", "br", "circle", "line", "path"}


class Page(HTMLParser):
    """What a page asks for, and whether its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "xlink:href")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return (made / "report.html").read_text()


def test_the_page_asks_for_nothing(page: str) -> None:
    read = Page(page)
    assert not read.open and len(read.links) == 4
    assert all(link.startswith("data:image/jpeg;base64,") for link in read.links)
    assert not read.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\(|@import|https?://", page)


def test_pictures_are_photos_with_and_without_boxes(page: str) -> None:
    pictures = [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) for link in Page(page).links]
    assert {picture.size for picture in pictures} == {(384, 384)}
    assert all(pictures[number].tobytes() != pictures[number + 1].tobytes() for number in (0, 2))


def test_the_page_has_every_way_both_answers_and_every_part(page: str, made: Path) -> None:
    text = html.unescape(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.S))
    for part in (
        "Beside the cheap ways",
        "Your photos, both answers",
        "What making it took",
        "Left out",
        "do a step again",
    ):
        assert part in text
    for row in json.loads((made / "fidelity.json").read_text())["results"]:
        assert f"{row['metrics']['divergence']:.3f}" in text and row["model"] in text
    for example in json.loads((made / "examples" / "examples.json").read_text()):
        assert example["key"] in text
        for answer in example["answers"]:
            assert answer["prompt"].split("\n")[0] in text
    assert "Nothing was refused, passed over or skipped." in text


def test_every_command_on_the_page_is_one_with_flags_that_exist(page: str) -> None:
    lines = [html.unescape(line) for line in re.findall(r"<pre>(.*?)</pre>", page, re.S)]
    assert [line.split()[1] for line in lines][:4] == ["bootstrap", "swap", "fidelity", "speed"]
    for line in lines:
        name, *words = shlex.split(line)[1:]
        cli._parsed(cli._options(name), words)


def test_what_is_said_by_others_is_text_and_not_page(
    made: Path, llava: Path, photo_folder: Path, tmp_path: Path
) -> None:
    host = shutil.copytree(llava, tmp_path / "<b>host & co")
    out, photos = shutil.copytree(made, tmp_path / "out"), open_photos(photo_folder)
    examples: list[dict[str, Any]] = json.loads((out / "examples" / "examples.json").read_text())
    examples[0] |= {"key": '"><script>alert(1)</script>'}
    examples[0]["answers"] = [{"prompt": "<img src=x>", "dense": "</p><script>", "sparse": "</p><script> & more"}]
    (out / "examples" / "examples.json").write_text(json.dumps(examples))
    (out / "tower" / "skipped.jsonl").write_text(json.dumps({"key": "<i>a.png", "reason": "no <photo>"}) + "\n")
    _report(out, host, photo_folder, photos)
    page = (out / "report.html").read_text()
    assert not Page(page).tags & {"script", "b", "i", "photo"} and len(Page(page).links) == 4
    assert "&lt;i&gt;a.png: no &lt;photo&gt;" in page


def _report(out: Path, host: Path, photo_folder: Path, photos: Any) -> None:
    asked = recipe(host, photo_folder).completed()
    held = hold_back(photos, 4, 0, out / "held-back.txt")
    write_report(asked, check_fit(asked), photos, held, Place(out, json.loads((out / "make.json").read_text())))


def test_what_could_not_be_read_is_listed(made: Path, llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    place = Place(out, json.loads((out / "make.json").read_text()))
    place.remember("unreadable", {"count": 3, "key": "photos/a.png", "why": "it is cut short"})
    near = json.loads((out / "fidelity.json").read_text()) | {
        "passed_over": 2,
        "first_passed_over": "photos/b.png: nothing is said",
    }
    (out / "fidelity.json").write_text(json.dumps(near))
    _report(out, llava, photo_folder, open_photos(photo_folder))
    page = (out / "report.html").read_text()
    assert (
        "3 photos that were drawn to be held back cannot be read, the first of them photos/a.png: it is cut short."
        in page
    )
    assert "2 of the photos held back were not measured, the first of them photos/b.png: nothing is said." in page


def test_a_run_in_the_same_folder_writes_the_same_page(
    made: Path, llava: Path, photo_folder: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    _report(out, llava, photo_folder, open_photos(photo_folder))
    assert (out / "report.html").read_text().replace(str(out), str(made)) == (made / "report.html").read_text()


def test_asked_again_the_folder_is_the_same(made: Path, llava: Path, photo_folder: Path) -> None:
    photos = open_photos(photo_folder)
    found = {"number of photos": len(photos), "hash of their names": names_hash(photos)[:16]}
    assert open_place(made, recipe(llava, photo_folder).completed().binding() | found).is_done("examples")
