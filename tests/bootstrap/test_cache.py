"""The teacher's outputs on disk, where that is full."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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
