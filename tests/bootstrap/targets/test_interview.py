import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import photos_of

from sfvlm.bootstrap.targets.interview import LONGEST_ANSWER, Interview, prompts_for
from sfvlm.hosts.host import open_host
from sfvlm.hosts.reader import HostReader
from sfvlm.photos.batches import Selection
from sfvlm.photos.decode import Photo
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import open_photos
from sfvlm.photos.views import tower_pixels
from sfvlm.teachers.open import open_teacher


def interview_of(folder: Path, **changes: Any) -> Interview:
    host, teacher = open_host(folder, device="cpu"), open_teacher(folder)
    reader = HostReader(host.model, host.processor)
    fields: dict[str, Any] = dict(turns=2, seed=0) | changes
    return Interview(reader, host.processor, host.fingerprint, teacher.model, **fields)


def test_a_template_that_cannot_be_followed_is_refused_before_anything_is_asked(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interview = interview_of(llava)
    interview.processor.chat_template = interview.processor.chat_template.replace("{{ 'ASSISTANT:'", "{{ 'answer:'")
    monkeypatch.setattr(HostReader, "answer", lambda *_: pytest.fail("the host was asked"))
    with pytest.raises(ValueError, match="writes a prompt otherwise once it is answered"):
        interview.answers(photos_of(photo_folder, 2), tmp_path / "answers.jsonl")


def test_answers_are_those_of_the_whole_host(llava: Path, tmp_path: Path) -> None:
    for index in range(4):  # of the host's own size: no resizing whose rounding could tip a random model
        render_scene(0, index, 56).image.save(tmp_path / f"{index}.png")
    photos = photos_of(tmp_path, 4)
    found = interview_of(llava, turns=3).answers(photos, tmp_path / "answers.jsonl")
    host = open_host(llava, device="cpu")
    images = [photos[index].image for index, turns in enumerate(found) for _ in turns]
    asked = [prompt for turns in found for prompt, _ in turns]
    assert len(asked) == 12
    expected = host.answer(images, asked, max_new_tokens=LONGEST_ANSWER)
    assert [answer for turns in found for _, answer in turns] == expected


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_a_host_is_asked_about_a_photo_as_its_own_processor_shows_it(kind: str, hosts: dict[str, Path]) -> None:
    interview, image = interview_of(hosts[kind]), render_scene(0, 1, 200).image.resize((300, 100))
    own = interview.processor.image_processor(image, return_tensors="pt")["pixel_values"].reshape(-1, 3, 56, 56)[0]
    seen = tower_pixels([interview.shown(image)], interview.dense.config, own)[0]
    assert (seen - own).abs().mean() < 1e-3


def test_answers_continue_where_they_stopped(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    photos, path = photos_of(photo_folder, 4), tmp_path / "answers.jsonl"
    whole = interview_of(llava).answers(photos, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # cut short in the third photo
    with pytest.MonkeyPatch.context() as patch:
        asked: list[int] = []
        original = Interview._ask
        patch.setattr(Interview, "_ask", lambda self, of, some: asked.extend(some) or original(self, of, some))
        assert interview_of(llava).answers(photos, path) == whole
    assert asked == [2, 3]
    with pytest.raises(ValueError, match="turns: 2 then, 3 now"):
        interview_of(llava, turns=3).answers(photos, path)


def test_a_run_that_breaks_off_at_the_first_line_leaves_no_file_of_others(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, text: str, encoding: str | None = None) -> None:
        path.open("w", encoding=encoding).write(text[:9])
        raise KeyboardInterrupt

    interview, photos, path = interview_of(llava), photos_of(photo_folder, 1), tmp_path / "answers.jsonl"
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        interview.answers(photos, path)
    monkeypatch.undo()
    assert len(interview.answers(photos, path)[0]) == 2


def test_answers_with_other_settings_are_another_hosts(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    photos, path = photos_of(photo_folder, 2), tmp_path / "answers.jsonl"
    interview = interview_of(llava)
    interview.answers(photos, path)
    interview.processor.chat_template += " "  # the weights are the same
    with pytest.raises(ValueError, match="holds other answers \\(settings: "):
        interview.answers(photos, path)
    head = path.read_text().splitlines(keepends=True)[0]
    for line in ("no answer", '{"key": 1}'):
        path.write_text(f"{head}{line}\n")
        with pytest.raises(ValueError, match=r"answers\.jsonl is damaged .*: remove it, or give another folder"):
            interview.answers(photos, path)


def test_answers_about_other_photos_of_the_same_names_are_refused(llava: Path, tmp_path: Path) -> None:
    folders = [tmp_path / version / "val" for version in ("v1", "v2")]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for index in range(3):
            render_scene(seed, index, 56).image.save(folder / f"{index}.png")
    interview, path = interview_of(llava), tmp_path / "answers.jsonl"
    interview.answers(photos_of(folders[0]), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"about other photos, val/0\.png among them: remove it"):
        interview.answers(photos_of(folders[1]), path)
    assert path.read_bytes() == before


def test_a_repaired_photo_is_asked_about_and_a_broken_one_not_again(llava: Path, tmp_path: Path) -> None:
    folder, path = tmp_path / "photos", tmp_path / "answers.jsonl"
    folder.mkdir()
    for index in range(3):
        render_scene(0, index, 56).image.save(folder / f"{index}.png")
    (folder / "1.png").write_bytes(b"no photo")
    photos, interview = photos_of(folder), interview_of(llava, at_once=1)
    first = interview.answers(photos, path)
    assert [len(turns) for turns in first] == [2, 0, 2]
    before = path.read_bytes()
    assert interview.answers(photos, path) == first and path.read_bytes() == before
    render_scene(0, 1, 56).image.save(folder / "1.png")
    whole = interview.answers(photos, path)
    assert whole == interview.answers(photos, tmp_path / "anew.jsonl")
    assert path.read_bytes().startswith(before) and interview.answers(photos, path) == whole


def test_photos_of_one_name_have_answers_of_their_own(llava: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name / "scenes" for name in "ab"]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        render_scene(0, index, 56).image.save(folder / "0.png")
    photos = Selection(open_photos(folders), range(2))
    interview, path = interview_of(llava, turns=3), tmp_path / "answers.jsonl"
    found = interview.answers(photos, path)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]] == ["scenes/0.png", "scenes/0.png#2"]
    each = [Selection(open_photos(folder), range(1)) for folder in folders]
    assert found == [interview.answers(one, tmp_path / f"{number}.jsonl")[0] for number, one in enumerate(each)]
    assert found == interview.answers(photos, path)


def test_photos_that_bring_prompts_are_asked_those_without_their_answers() -> None:
    meta = {"questions": [{"question": "What color is the star?", "answer": "SECRET"}], "qa": [["how many", "SECRET"]]}
    asked = prompts_for(Photo(None, "a", None, (), meta), 3, random.Random(0))  # type: ignore[arg-type]
    assert len(asked) == 3
    assert any("star" in words for words in asked) and any("How many" in w or "how many" in w for w in asked)
    assert "SECRET" not in str(asked)
    assert prompts_for(Photo(None, "a", None, (), {}), 3, random.Random(0), ("Only this?",)) == ["Only this?"]  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["questions", "qa"])
@pytest.mark.parametrize("value", ["why?", None, {"question": "why?"}, ["why?", None, [], [None], {"question": 3}]])
def test_other_peoples_fields_of_these_names_are_no_prompts(field: str, value: Any) -> None:
    asked = prompts_for(Photo(None, "a", None, (), {field: value}), 3, random.Random(0))  # type: ignore[arg-type]
    assert asked == prompts_for(Photo(None, "a", None, (), {}), 3, random.Random(0))  # type: ignore[arg-type]
