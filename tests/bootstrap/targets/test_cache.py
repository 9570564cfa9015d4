"""The teacher's outputs on disk: what they serve, what is refused, and where the disk is full."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_runs import run, same

from sfvlm.bootstrap.targets.cache import TeacherCache
from sfvlm.util.errors import NotWritten


def test_a_full_disk_is_one_sentence_and_what_is_kept_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TeacherCache(tmp_path, {"teacher": "a"}, 1, 2, 3)
    first, second = torch.tensor([0]), torch.tensor([1])
    cache.put(first, first, torch.ones(1, 3))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(NotWritten, match=r"cannot be written: No space left on device\."):
        cache.put(first, second, torch.ones(1, 3))
    kept = TeacherCache(tmp_path, {"teacher": "a"}, 1, 2, 3)
    assert torch.equal(kept.get(first, first), torch.ones(1, 3)) and kept.get(first, second) is None


def test_a_teacher_cache_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file cannot be made"):
        TeacherCache(tmp_path / "file", {}, 1, 2, 3)
    TeacherCache(tmp_path / "cache", {}, 1, 2, 3)
    (tmp_path / "cache" / "key.json").write_text("{")
    with pytest.raises(ValueError, match=r"key\.json is no JSON"):
        TeacherCache(tmp_path / "cache", {}, 1, 2, 3)


@pytest.mark.parametrize("focusing", ["inherited", "chosen"])
def test_a_teacher_cache_serves_a_second_run_and_one_of_other_settings_is_refused(
    focusing: str, clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = dict(cached_views=2, teacher_cache=tmp_path / "cache", focusing=focusing, eval_every=0)
    first = run(clip_folder, photo_folder, tmp_path / "first", **shared)
    asked = []
    monkeypatch.setattr(TeacherCache, "put", lambda *batch: asked.append(batch))
    second = run(clip_folder, photo_folder, tmp_path / "second", **shared)
    assert first is not None and second is not None and same(first, second) and not asked
    with pytest.raises(ValueError, match=r"other settings \(photo_names, photo_samples, seed\)"):
        run(clip_folder, photo_folder, tmp_path / "third", seed=1, **shared)


def test_a_teacher_cache_of_fewer_views_or_of_other_photos_of_the_same_names_is_refused(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    shared = dict(teacher_cache=tmp_path / "cache", eval_every=0, steps=1)
    run(clip_folder, photo_folder, tmp_path / "two", cached_views=2, **shared)
    run(clip_folder, photo_folder, tmp_path / "one", cached_views=1, **shared)
    with pytest.raises(ValueError, match=r"shape \(2, 22, 24\) .*, and \(4, 22, 24\) is asked for"):
        run(clip_folder, photo_folder, tmp_path / "four", cached_views=4, **shared)
    others = tmp_path / "others" / photo_folder.name
    others.mkdir(parents=True)
    for photo in photo_folder.iterdir():
        Image.open(photo).rotate(180).save(others / photo.name)
    with pytest.raises(ValueError, match=r"other settings \(photo_samples\)"):
        run(clip_folder, others, tmp_path / "three", cached_views=2, **shared)
