"""What a scene promises: the same picture every time, and true labels, captions and answers."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from sfvlm.photos.scene_texts import CLASS_NAMES, COLORS, SHAPES, Question, SceneObject, class_prompt
from sfvlm.photos.scenes import BACKGROUNDS, Scene, render_scene, scene_dataset


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """300 scenes, small in pixels: nothing but the pixels depends on the size."""
    ordinary = [render_scene(3, index, image_size=64) for index in range(220)]
    return ordinary + [render_scene(4, index, 64, small_objects=True) for index in range(80)]


@pytest.fixture(scope="module")
def many_scenes() -> list[Scene]:
    return list(scene_dataset(800, seed=6, image_size=32))


def digest(scene: Scene) -> str:
    content = scene.image.tobytes() + json.dumps(scene.to_meta()).encode()
    return hashlib.sha256(content).hexdigest()


def longest_side(item: SceneObject) -> float:
    x1, y1, x2, y2 = item.box
    return max(x2 - x1, y2 - y1)


def test_scene_is_the_same_in_another_process_and_order() -> None:
    program = (
        "import hashlib, json\n"
        "from sfvlm.photos.scenes import render_scene\n"
        "for index in (7, 3, 5):\n"
        "    scene = render_scene(11, index, 96)\n"
        "    content = scene.image.tobytes() + json.dumps(scene.to_meta()).encode()\n"
        "    print(hashlib.sha256(content).hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = {index: digest(render_scene(11, index, 96)) for index in (3, 5, 7)}
    assert other.stdout.split() == [here[7], here[3], here[5]]


def test_other_seed_or_index_gives_another_scene() -> None:
    assert len({digest(render_scene(*pair, 64)) for pair in ((0, 1), (1, 0), (0, 0), (1, 1))}) == 4


def test_dataset_counts_from_the_first_scene() -> None:
    expected = [digest(render_scene(2, index, 64)) for index in range(3)]
    assert [digest(scene) for scene in scene_dataset(3, seed=2, image_size=64)] == expected


@pytest.mark.parametrize("arguments", [(-1, 0, 64), (0, -1, 64), (0, 0, 16)])
def test_arguments_out_of_range_raise(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="start at"):
        render_scene(*arguments)


def test_boxes_lie_inside_the_image_and_do_not_touch(scenes: list[Scene]) -> None:
    for scene in scenes:
        for number, item in enumerate(scene.objects):
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
            for other in scene.objects[:number]:
                assert x2 < other.box[0] or other.box[2] < x1 or y2 < other.box[1] or other.box[3] < y1


@pytest.mark.parametrize(("small_objects", "count", "image_size"), [(False, 25, 224), (True, 6, 640)])
def test_object_color_reaches_all_sides_of_its_box(small_objects: bool, count: int, image_size: int) -> None:
    for index in range(count):
        scene = render_scene(8, index, image_size, small_objects)
        pixels = np.asarray(scene.image).astype(int)
        for item in scene.objects:
            color = np.array(COLORS[item.color])
            # Shading and grain darken a colour by up to a fifth; they do not change its hue.
            near = abs(pixels - 0.93 * color).max(axis=2) < 32
            x1, y1, x2, y2 = (round(side * image_size) for side in item.box)
            inside = near[y1:y2, x1:x2]
            assert inside.mean() > (0.04 if item.text else 0.2), (index, item)
            if not item.text and item.shape != "ring":
                # Tight: the colour comes close to all four sides.
                rows, columns = np.nonzero(inside)
                slack = 2 + 0.06 * max(inside.shape)
                assert rows.min() <= slack and columns.min() <= slack, (index, item)
                assert rows.max() >= inside.shape[0] - 1 - slack, (index, item)
                assert columns.max() >= inside.shape[1] - 1 - slack, (index, item)


def test_label_names_the_largest_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        sizes = sorted((longest_side(item) for item in scene.objects), reverse=True)
        largest = max(scene.objects, key=longest_side)
        assert CLASS_NAMES[scene.label] == f"{largest.color} {largest.shape}"
        assert len(sizes) == 1 or sizes[0] > 1.2 * sizes[1]


def test_small_objects_measure_four_to_eight_percent(scenes: list[Scene]) -> None:
    sides = [longest_side(item) for scene in scenes[220:] for item in scene.objects]
    assert min(sides) >= 0.04 - 1e-9 and max(sides) <= 0.08 + 1e-9


def center(item: SceneObject) -> tuple[float, float]:
    return (item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2


def expected_answer(question: Question, objects: tuple[SceneObject, ...]) -> str:
    """The answer worked out from the objects alone; asserts that the question has only one."""

    def the(words: str) -> SceneObject:
        found = [item for item in objects if set(words.split()) <= {item.color, item.shape}]
        assert len(found) == 1, f"{words!r} is not unique for {question}"
        return found[0]

    def is_true(a: SceneObject, relation: str, b: SceneObject) -> bool:
        axis = 0 if relation in ("left", "right") else 1
        difference = center(a)[axis] - center(b)[axis]
        assert abs(difference) > 0.14
        return (difference < 0) == (relation in ("left", "above"))

    biggest = max(objects, key=longest_side)
    text = question.question
    if text == "How many objects are there?":
        return str(len(objects))
    if match := re.fullmatch(r"How many (\w+) objects are there\?", text):
        assert not any(item.text and item.color == match[1] for item in objects)
        return str(sum(item.color == match[1] for item in objects))
    if match := re.fullmatch(r"How many (\w+) are there\?", text):
        assert match[1] in ("crosses", "digits", "letters", *(f"{shape}s" for shape in SHAPES))
        return str(sum(match[1] in (f"{item.shape}s", f"{item.shape}es") for item in objects))
    if match := re.fullmatch(r"What (shape|color) is the biggest object\?", text):
        return getattr(biggest, match[1])
    if match := re.fullmatch(r"What shape is the (\w+) object\?", text):
        return the(match[1]).shape
    if match := re.fullmatch(r"What color is the (\w+)\?", text):
        return the(match[1]).color
    if match := re.fullmatch(r"What size is the (\w+ \w+)\?", text):
        side = longest_side(the(match[1]))
        return "small" if side < 0.15 else "medium" if side < 0.28 else "large"
    if match := re.fullmatch(r"Which is bigger, the (\w+ \w+) or the (\w+ \w+)\?", text):
        return max(match[1], match[2], key=lambda name: longest_side(the(name)))
    if match := re.fullmatch(r"What (?:is the (\w+ \w+)|(\w+) is shown)\?", text):
        return str(the(match[1] or match[2]).text).lower()
    if match := re.fullmatch(r"Is there an? (\w+) (\w+)\?", text):
        found = any((item.color, item.shape) == (match[1], match[2]) for item in objects)
        return "yes" if found else "no"
    if match := re.fullmatch(r"Is the (\w+ \w+) on the (\w+) or (\w+) of the picture\?", text):
        position = center(the(match[1]))[match[2] == "top"]
        assert abs(position - 0.5) > 0.14
        return match[2] if position < 0.5 else match[3]
    match = re.fullmatch(r"Is the (\w+ \w+) (?:to the )?(\w+)(?: of)? the (\w+ \w+)\?", text)
    assert match, f"no reading for {text!r}"
    return "yes" if is_true(the(match[1]), match[2], the(match[3])) else "no"


def test_answers_follow_from_the_objects_for_every_kind(scenes: list[Scene]) -> None:
    asked: Counter[str] = Counter()
    for scene in scenes:
        assert len(scene.questions) >= 3
        for question in scene.questions:
            assert question.answer == expected_answer(question, scene.objects), question
            assert question.answer == question.answer.lower()
            assert len(question.answer.split()) <= 2
            asked[question.kind] += 1
    assert set(asked) == {"color", "shape", "count", "position", "read", "exists", "size"}
    assert min(asked.values()) > 50


def test_yes_and_no_are_balanced(many_scenes: list[Scene]) -> None:
    answers: dict[str, Counter[str]] = {"exists": Counter(), "position": Counter()}
    for scene in many_scenes:
        for question in scene.questions:
            if question.answer in ("yes", "no"):
                answers[question.kind][question.answer] += 1
    for counts in answers.values():
        assert 0.45 < counts["yes"] / counts.total() < 0.55


def test_captions_differ_and_name_the_main_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(set(scene.captions)) == len(scene.captions) >= 3
        for caption in scene.captions:
            assert CLASS_NAMES[scene.label] in caption
            assert not re.search(r"\ba [aeio]|\ban [^aeio]", caption), caption


def test_captions_name_only_what_is_there(scenes: list[Scene]) -> None:
    for scene in scenes:
        present = {(item.color, item.shape) for item in scene.objects}
        for caption in scene.captions:
            for color, shape in re.findall(r"(\w+) (\w+)", caption.replace(",", " ,")):
                name = re.sub(r"(?<=s)es$|(?<!s)s$", "", shape)
                if color in COLORS and name in (*SHAPES, "digit", "letter"):
                    assert (color, name) in present, caption
            if match := re.search(r"(\w+) background", caption):
                assert match[1] == scene.background
            if match := re.match(r"(\d) objects", caption):
                assert int(match[1]) == len(scene.objects)


def test_every_class_occurs_and_none_dominates(many_scenes: list[Scene]) -> None:
    counts = Counter(scene.label for scene in many_scenes)
    assert set(counts) == set(range(len(CLASS_NAMES)))
    assert max(counts.values()) < 0.03 * len(many_scenes)


def test_scenes_use_all_backgrounds_and_object_counts(scenes: list[Scene]) -> None:
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4, 5}


def test_larger_image_shows_the_same_scene() -> None:
    for index in range(10):
        small, large = render_scene(9, index, 224), render_scene(9, index, 448)
        assert small.to_meta() == large.to_meta()
        assert large.image.size == (448, 448)
        difference = np.asarray(large.image.reduce(2)).astype(int) - np.asarray(small.image)
        assert abs(difference).mean() < 6  # of 255: grain and edges


def test_meta_survives_json(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        meta = json.loads(json.dumps(scene.to_meta()))
        assert CLASS_NAMES[meta["label"]] in meta["captions"][0]
        assert len(meta["objects"]) == len(scene.objects)
        assert meta["objects"][0]["box"] == list(scene.objects[0].box)


def test_class_prompt_reads_well_and_refuses_unknown_names() -> None:
    assert class_prompt("orange star") == "a picture of an orange star"
    assert len(set(map(class_prompt, CLASS_NAMES))) == len(CLASS_NAMES) == 100
    with pytest.raises(ValueError, match="unknown class"):
        class_prompt("mauve spoon")
