"""One LLaVA, and one run that many tests look at."""

from pathlib import Path

import pytest
from tiny_llava import tiny_llava
from tiny_makes import in_short, recipe

from sfvlm.make.run import make


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLaVA; nothing in it is to be changed."""
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def made(llava: Path, photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is made: nothing in it is to be changed."""
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        in_short(patch)
        make(recipe(llava, photo_folder), out)
    return out


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    in_short(monkeypatch)
