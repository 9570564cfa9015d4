"""Files of class names, as people and programs write them."""

import json

import pytest

from sfvlm.photos.class_names import read_classes

WNIDS = ("n01440764", "n02102040", "n03417042")


def read(tmp_path, content, name="names.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_classes(path)
    return found.names, found.ids


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog\neel",
        b"\xef\xbb\xbfcat\r\ndog\r\neel\r\n\r\n",
        b"  cat \ndog\t\neel\n",
        b'["cat", "dog", "eel"]',
    ],
)
def test_names_are_lines_however_they_end(content, tmp_path):
    assert read(tmp_path, content) == (("cat", "dog", "eel"), None)


@pytest.mark.parametrize(
    "content",
    [
        "2 eel\n0 cat\n1 dog",
        "2,eel\n0,cat\n1,dog",
        "2: eel\n0: cat\n1: dog",
        "eel 2\ncat 0\ndog 1",
        "eel,2\ncat,0\ndog,1",
        '{"2": "eel", "0": "cat", "1": "dog"}',
        '{"eel": 2, "cat": 0, "dog": 1}',
        '[{"id": 2, "name": "eel"}, {"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]',
        '{"model_type": "vit", "id2label": {"2": "eel", "0": "cat", "1": "dog"}}',
    ],
)
def test_numbers_beside_the_names_decide_their_order(content, tmp_path):
    assert read(tmp_path, content) == (("cat", "dog", "eel"), ("0", "1", "2"))


def test_numbers_may_count_from_one(tmp_path):
    assert read(tmp_path, "2 dog\n1 cat") == (("cat", "dog"), ("1", "2"))
    assert read(tmp_path, '{"dog": 2, "cat": 1}', "map.json") == (("cat", "dog"), ("1", "2"))


def test_wordnet_ids_beside_the_names_are_kept(tmp_path):
    names = ("tench, Tinca tinca", "English springer", "gas pump")
    lines = "\n".join(f"{wnid} {name}" for wnid, name in zip(WNIDS, names, strict=True))
    assert read(tmp_path, lines) == (names, WNIDS)
    index = {
        str(number): [wnid, name] for number, (wnid, name) in reversed([*enumerate(zip(WNIDS, names, strict=True))])
    }
    assert read(tmp_path, json.dumps(index)) == (names, WNIDS)  # as in imagenet_class_index.json
    assert read(tmp_path, json.dumps(dict(zip(WNIDS, names, strict=True)))) == (names, WNIDS)


@pytest.mark.parametrize(
    "lines", [("1 cent", "2 cent"), ("3 series", "5 series", "7 series"), ("class 0", "class 1"), ("7 up", "cola")]
)
def test_numbers_that_belong_to_names_stay(lines, tmp_path):
    assert read(tmp_path, "\n".join(lines)) == (lines, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog", "Line 2 of .* is blank"),
        (b"# my classes\ncat", "Line 1 of .* begins with #"),
        (b"caf\xe9\ncat", "no UTF-8"),
        ("cat\ndog".encode("utf-16-le"), "UTF-8"),
        (b" \n", "is empty"),
        (b'{"0": "cat", "0": "dog"}', "'0' is there several times"),
        (b'{"0": "cat", "2": "dog"}', "gives its 2 classes the numbers 0, 2"),
        (b'{"cat": "x", "dog": "y"}', "they must count all of them"),
        (b'{"cat": [1]}', "holds neither a list"),
        (b"[1, 2]", "holds neither a list"),
        (b"[]", "holds neither a list"),
        (b"{cat", "is no JSON of classes"),
    ],
)
def test_what_says_no_order_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
