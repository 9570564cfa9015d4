"""The lmms-eval plug-in, on a stand-in for what it touches of lmms-eval 0.7.3, and on the package where it is installed."""

import abc
import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_llava import tiny_llava

from sfvlm.hosts.host import open_host
from sfvlm.photos.scenes import render_scene

PROMPTS = ("What color?", "How many circles are there?", "Is there a dog?")


class Lmms(abc.ABC):
    """The members of lmms_eval.api.model.lmms that its evaluator and its models rely on."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook: Any = types.SimpleNamespace(add_partial=lambda attribute, request, result: None)
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "sfvlm.vqa.lmms_host", raising=False)
    yield
    sys.modules.pop("sfvlm.vqa.lmms_host", None)


def resolved() -> Any:
    """The class that the manifest names, found as lmms-eval's registry finds it."""
    manifest = importlib.import_module("sfvlm.vqa.lmms").manifest()
    assert manifest.model_id == "sfvlm"
    module, _, name = manifest.chat_class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def requests(model: Any, settings: list[dict[str, Any]]) -> list[Any]:
    """Chat requests as lmms-eval 0.7.3 makes them: (context, doc_to_messages, settings, doc_id, task, split)."""
    model.task_dict["scenes"] = {
        "test": [(render_scene(0, index, 64).image, text) for index, text in enumerate(PROMPTS)]
    }

    def to_messages(doc: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image", "url": doc[0]}, {"type": "text", "text": doc[1]}]}]

    arguments = [(text, to_messages, settings[index], index, "scenes", "test") for index, text in enumerate(PROMPTS)]
    return [types.SimpleNamespace(args=each) for each in arguments]


def check_answers(model: Any, folder: Path) -> None:
    asked = requests(model, [{"max_new_tokens": 6}, {"max_new_tokens": 3}, {"max_new_tokens": 6, "until": ["\n\n"]}])
    host = open_host(folder, device="cpu")
    images = [doc[0] for doc in model.task_dict["scenes"]["test"]]
    expected = [
        host.answer([image], [text], max_new_tokens=length)[0]
        for image, text, length in zip(images, PROMPTS, (6, 3, 6), strict=True)
    ]
    assert model.generate_until(asked) == expected
    with pytest.raises(ValueError, match="answers greedily; the task scenes asks for"):
        model.generate_until(requests(model, [{"temperature": 0.7}] * 3))


@pytest.mark.usefixtures("stand_in")
def test_lmms_eval_finds_the_host_and_gets_its_answers_in_order(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path)
    model = resolved()(pretrained=str(folder), batch_size=2, device="cpu", max_batch_size=None)
    assert not model.is_simple
    assert (model.rank, model.world_size, model.batch_size_per_gpu) == (0, 1, 2)
    assert model.device.type == "cpu" and model.eot_token_id == model.tokenizer.eos_token_id
    assert model.max_length == 512 and model.config.model_type == "llava"
    check_answers(model, folder)
    with pytest.raises(NotImplementedError):
        model.loglikelihood([])


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("size", ["auto", "auto:4", 0, "-1"])
def test_a_batch_size_that_is_no_number_is_refused(size: int | str) -> None:
    with pytest.raises(ValueError, match=f"batch_size is {size!r}, and sfvlm needs a number of questions"):
        resolved()(pretrained="/nowhere", batch_size=size)


@pytest.mark.usefixtures("stand_in")
def test_a_video_is_refused(tmp_path: Path) -> None:
    model = resolved()(pretrained=str(tiny_llava(tmp_path)), device="cpu")
    model.task_dict["films"] = {"test": [None]}
    content = [{"type": "video", "url": "a.mp4"}]
    request = types.SimpleNamespace(
        args=("", lambda doc: [{"role": "user", "content": content}], {}, 0, "films", "test")
    )
    with pytest.raises(ValueError, match="the task films has video"):
        model.generate_until([request])


@pytest.mark.usefixtures("stand_in")
def test_a_strip_is_answered_by_nothing_which_a_warning_says_and_the_others_as_before(tmp_path: Path) -> None:
    model = resolved()(pretrained=str(tiny_llava(tmp_path)), batch_size=3, device="cpu")
    settings = [{"max_new_tokens": 6}] * 3
    before = model.generate_until(requests(model, settings))
    asked = requests(model, settings)
    docs = model.task_dict["scenes"]["test"]
    docs[1] = (Image.new("RGB", (30_000, 2)), docs[1][1])
    with pytest.warns(
        UserWarning, match="1 questions are answered by nothing.* 1 of scenes: its photo has 30000 x 2 pixels"
    ):
        after = model.generate_until(asked)
    assert after == [before[0], "", before[2]]


@pytest.mark.reference
def test_the_installed_lmms_eval_finds_the_host(tmp_path: Path) -> None:
    registry_v2 = pytest.importorskip("lmms_eval.models.registry_v2")
    from sfvlm.vqa.lmms import manifest

    registry = registry_v2.ModelRegistryV2()
    registry.register_manifest(manifest())
    folder = tiny_llava(tmp_path)
    model = registry.get_model_class("sfvlm").create_from_arg_string(
        f"pretrained={folder}", {"batch_size": 2, "device": "cpu", "max_batch_size": None}
    )
    check_answers(model, folder)
