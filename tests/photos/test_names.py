"""Which photo a written name means."""

import io
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_questions import jpeg, write_json, write_lines, write_shard

from sfvlm.photos.names import closest, photo_name
from sfvlm.photos.sources import open_photos
from sfvlm.vqa.ask import questions_of
from sfvlm.vqa.photos import SourcePhotos
from sfvlm.vqa.questions import SHORT_ANSWER


def source(root: Path, *names: str) -> SourcePhotos:
    """Photos of these names in a folder, each of them of its own width."""
    for width, name in enumerate(names, start=8):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 8)).save(root / name)
    return SourcePhotos(open_photos(root))


def found(photos: SourcePhotos, name: str) -> str:
    return photos.photos.key(photos.find(name)).partition("/")[2]


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (("1.jpg", "1.png"), "1.jpg", "1.jpg"),
        (("1.jpg", "1.png"), "1.PNG", "1.png"),
        (("1.jpg", "1.png"), "1.jpeg", "1.jpg"),
        (("1.JPG", "1.jpg"), "1.JPG", "1.JPG"),
        (("images/1.jpg", "masks/1.png"), "1.jpg", "images/1.jpg"),
        (("1.jpg", "train/1.jpg"), "1.jpg", "1.jpg"),
        (("val/1.jpg", "old/val/1.jpg"), "val/1.jpg", "val/1.jpg"),
        (("a/val/1.jpg", "b/val/1.jpg"), "x/a/val/1.jpg", "a/val/1.jpg"),
        (("train/1.jpg", "val/1.jpg"), "/data/coco/train/1.jpg", "train/1.jpg"),
        (("train/1.png", "val/1.jpg"), "train/1.jpg", "train/1.png"),
        (("color/images/1.jpg", "1.jpg"), "color/1.jpg", "color/images/1.jpg"),
        (("color/images/1.jpg", "count/images/1.jpg"), "count/1.jpg", "count/images/1.jpg"),
    ],
)
def test_the_path_comes_before_the_end_of_a_path_and_that_before_the_stem(
    names: tuple[str, ...], asked: str, expected: str, tmp_path: Path
) -> None:
    assert found(source(tmp_path / "p", *names), asked) == expected


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (("val/1.jpg",), "train/1.jpg"),
        (("val/images/1.jpg",), "train/images/1.jpg"),
        (("images/val/1.jpg",), "images/train/1.jpg"),
        (("b/val/1.jpg",), "a/val/1.jpg"),
        (("val/1.jpg",), "TRAIN\\1.jpg"),
        (("val/1.jpg",), "file:///data/train/1.jpg"),
        (("val/1.jpg",), "C:\\data\\train\\1.jpg"),
    ],
)
def test_a_photo_of_another_folder_is_refused(names: tuple[str, ...], asked: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not in .*: p/.* is called like it, but lies in another folder\. Give"):
        source(tmp_path / "p", *names).find(asked)


@pytest.mark.parametrize(
    ("root", "asked"),
    [
        ("val", "train/1.jpg"),
        ("val2014", "train2014/1.jpg"),
        ("train2017", "/data/coco/train2014/1.jpg"),
        ("validation", "test/1.jpg"),
        ("part-2", "part-1/1.jpg"),
        ("val/images", "train/images/1.jpg"),
    ],
)
def test_a_source_that_is_called_like_another_part_of_the_data_is_refused(
    root: str, asked: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="lies in another folder"):
        source(tmp_path / root, "1.jpg").find(asked)


def test_a_source_beside_the_folder_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    cats = source(tmp_path / "cats", "1.jpg")
    assert found(cats, "dogs/1.jpg") == "1.jpg"  # called otherwise here, as far as anybody can tell
    assert cats.assumed == {"dogs/1.jpg": "cats/1.jpg"}
    (tmp_path / "dogs").mkdir()
    with pytest.raises(ValueError, match="lies in another folder"):
        cats.find("dogs/1.jpg")


@pytest.mark.parametrize("names", [("a/1.jpg", "b/1.jpg"), ("1.jpg", "1.png")])
def test_a_stem_that_nothing_tells_apart_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The photo 1 could be any of 2 in"):
        source(tmp_path / "p", *names).find("1")


@pytest.mark.parametrize(
    "asked",
    [
        "train/a b.jpg",
        "./train/a b.jpg",
        "train//a b.jpg",
        "val/../train/a b.jpg",
        "train\\a b.jpg",
        "D:\\coco\\train\\a b.jpg",
        "/data/coco/train/a b.jpg",
        "file:///data/coco/train/a%20b.jpg",
        "file://localhost/train/a%20b.jpg",
        "http://images.example.org/train/a%20b.jpg?size=large",
        "train/a%20b.jpg",
        "train/a b.JPG",
        "train/a b",
        " train/a b.jpg ",
        "Train/a b.jpg",
    ],
)
def test_a_path_may_be_written_in_several_ways(asked: str, tmp_path: Path) -> None:
    photos = source(tmp_path / "p", "train/a b.jpg", "val/a b.jpg")
    assert found(photos, asked) == "train/a b.jpg"
    assert not photos.assumed
    flat = source(tmp_path / "train", "a b.jpg")
    assert found(flat, asked) == "a b.jpg"
    assert not flat.assumed


@pytest.mark.parametrize("forms", ["CD", "DC"])
def test_accents_may_be_one_letter_or_two(forms: Any, tmp_path: Path) -> None:
    written, asked = (unicodedata.normalize(f"NF{form}", "caf\u00e9/r\u00e9.jpg") for form in forms)
    assert written != asked
    assert found(source(tmp_path, written), asked) == written


def test_what_is_the_same_file_is_not_several(tmp_path: Path) -> None:
    source(tmp_path / "p", "real/1.jpg")
    (tmp_path / "p" / "link").symlink_to("real")
    (tmp_path / "elsewhere").symlink_to("p/real")
    photos = SourcePhotos(open_photos([tmp_path / "p", tmp_path / "p" / "real"]))
    assert len(photos.photos) == 3
    for name in ("1.jpg", "1", "link/1.jpg", "real/1.jpg", f"{tmp_path}/elsewhere/1.jpg"):
        assert photos.open(name).width == 8


def test_members_of_shards_are_found_by_their_folders(tmp_path: Path) -> None:
    photos = SourcePhotos(open_photos(write_shard(tmp_path / "coco-val-000.tar", [{}, {}])))
    for name in ("000000000001.jpg", "val/000000000001.jpg", "./000000000001.png", "coco-val-000.tar:000000000001"):
        assert photos.open(name).width == 9
    for name in ("train/000000000001.jpg", "coco-val-001.tar:000000000001"):
        with pytest.raises(ValueError, match="lies in another folder"):
            photos.find(name)


def test_a_name_is_as_near_to_itself_as_to_nothing_else() -> None:
    names = ["train/1.jpg", "val/1.jpg", "val/1.png", "a/val/1.jpg", "1.jpg", "a%20b.jpg", "a b.jpg"]
    for number, name in enumerate(names):
        same = [other for other in names if photo_name(other).stem == photo_name(name).stem]
        assert [same[place] for place in closest(photo_name(name), [photo_name(other) for other in same])] == [
            names[number]
        ]


@pytest.mark.parametrize("benchmark", ["textvqa", "vizwiz"])
def test_annotations_of_a_photo_in_another_folder_are_none_of_this_one(benchmark: str, tmp_path: Path) -> None:
    asked = {"question_id": 1, "image": "train/1.jpg", "text": "What?" + SHORT_ANSWER}
    path = write_lines(tmp_path / "q.jsonl", [asked])
    known = [{"image": f"{split}/1.jpg", "question": "What?", "answers": [split] * 10} for split in ("val", "train")]
    data = [
        {"image_id": row["image"].removesuffix(".jpg"), "question_id": number, **row}
        for number, row in enumerate(known)
    ]
    if benchmark == "vizwiz":
        data = [row | {"answers": [{"answer": answer} for answer in row["answers"]]} for row in known]

    def annotations(rows: list[Any]) -> list[Path]:
        return [write_json(tmp_path / "known.json", rows if benchmark == "vizwiz" else {"data": rows})]

    (question,) = questions_of(benchmark, [path], annotations(data))
    assert set(question.answers) == {"train"}
    with pytest.raises(ValueError, match="1 of 1 questions are not in the annotations"):
        questions_of(benchmark, [path], annotations(data[:1]))


def test_shards_that_say_a_key_twice_hold_two_photos(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for width, name in enumerate(("1.jpg", "2.jpg", "1.jpg"), start=8):
            member = tarfile.TarInfo(name)
            member.size = len(jpeg(width))
            tar.addfile(member, io.BytesIO(jpeg(width)))
    with pytest.raises(ValueError, match="could be any of 2"):
        SourcePhotos(open_photos(tmp_path / "x.tar")).find("1.jpg")
