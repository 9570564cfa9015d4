"""vLLM serves our towers: the same greedy tokens as transformers, and bad requests are errors of their own alone.

Run in an environment of its own (`make serve-test`): the engine pins torch and transformers.
"""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from next_host import write_next_host
from PIL import Image

from sfvlm.alternatives.towers import reduce_host
from sfvlm.hosts.host import Host, open_host, user_message
from sfvlm.hosts.swap import swap_folder
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import open_photos
from sfvlm.serve.endpoint import Endpoint, as_url
from sfvlm.vqa.ask import ask, made_questions, measure
from sfvlm.vqa.photos import SourcePhotos
from sfvlm.zoo.names import resolve

pytestmark = pytest.mark.serve
FLAGS = ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager"]
LONGEST, PATIENCE = 48, 300
QUESTIONS = (
    "Describe the photo.",
    "What color is the biggest object?",
    "How many objects are there?",
    "Is there a dog?",
)
Asked = list[tuple[Image.Image, str]]


def scenes(count: int, index: int = 5) -> Asked:
    """Rendered scenes of several sizes and shapes, each with a question."""
    sides = ((224, 224), (448, 224), (200, 300), (640, 480))
    return [
        (render_scene(number, index, 336).image.resize(sides[number % len(sides)]), QUESTIONS[number % len(QUESTIONS)])
        for number in range(count)
    ]


@contextmanager
def serving(folder: Path, log: Path, *flags: str) -> Iterator[str]:
    """`sfvlm serve` on a free port; gives its address, and checks that nothing outlives it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("sfvlm")),
        "serve",
        "--model",
        str(folder),
        "--port",
        str(port),
        *FLAGS,
        *flags,
    ]
    quiet = dict(
        VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CACHE_ROOT=str(log.parent / "vllm"),
    )  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + PATIENCE
        while f"Serving {folder} at" not in log.read_text(errors="replace"):
            assert process.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        assert "A first question" in log.read_text(errors="replace")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)


def said(url: str, model: str, content: list[dict[str, Any]], longest: int = LONGEST) -> tuple[list[int], int]:
    """Ids of the server's greedy answer, and how many the prompt has."""
    body = {
        "model": model, "temperature": 0, "max_tokens": longest, "return_token_ids": True,
        "messages": [{"role": "user", "content": content}],
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        found = json.load(answer)
    return found["choices"][0]["token_ids"], found["usage"]["prompt_tokens"]


def parts(*images: Image.Image | str, text: str) -> list[dict[str, Any]]:
    urls = [image if isinstance(image, str) else as_url(image) for image in images]
    return [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": text}]


def here(host: Host, images: list[Image.Image], text: str) -> tuple[list[int], int]:
    """The same from transformers."""
    reply = host.stream([user_message(text, len(images))], images, max_new_tokens=LONGEST)
    list(reply)
    assert reply.timings is not None
    return reply.tokens, reply.timings.prompt_tokens


def check_same(url: str, folder: Path, asked: Asked) -> None:
    host = open_host(folder, dtype="float32", device="cpu")
    wanted = [here(host, [image], text) for image, text in asked]
    found = [said(url, str(folder), parts(image, text=text)) for image, text in asked]
    assert found == wanted
    assert len({tuple(ids) for ids, _ in found}) > 2  # it does not say one thing of everything


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped LLaVA with 49 tokens."""
    folder = tmp_path_factory.mktemp("sparse") / "llava-49"
    swap_folder(resolve("llava-tiny"), resolve("sparseformer-tiny-49"), folder)
    return folder


@pytest.fixture(scope="module")
def url(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("engine") / "log"
    with serving(sparse, log, "--limit-mm-per-prompt", '{"image":2}') as address:
        yield address


def test_49_tokens_are_answered_from_as_in_transformers(url: str, sparse: Path) -> None:
    check_same(url, sparse, scenes(18))


def test_text_alone_and_two_pictures(url: str, sparse: Path) -> None:
    host = open_host(sparse, dtype="float32", device="cpu")
    images = [image for image, _ in scenes(2)]
    assert said(url, str(sparse), parts(text="Hello?")) == here(host, [], "Hello?")
    assert said(url, str(sparse), parts(*images, text="What is it?")) == here(host, images, "What is it?")


def test_sixteen_at_once_are_told_what_each_is_told_alone(url: str, sparse: Path) -> None:
    asked = scenes(16, index=6)  # that no other test has shown: the engine keeps what it has encoded
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda each: said(url, str(sparse), parts(each[0], text=each[1])), asked))
    assert together == [said(url, str(sparse), parts(image, text=text)) for image, text in asked]


@pytest.mark.parametrize("kind", ["broken", "no picture", "too many", "too long"])
def test_a_bad_request_is_an_error_of_its_own(url: str, sparse: Path, kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    broken = "data:image/png;base64," + base64.b64encode(file.getvalue()[:60]).decode()
    red = Image.new("RGB", (64, 64), "red")
    content = {
        "broken": parts(broken, text="What is it?"),
        "no picture": parts("data:image/png;base64,AAAA", text="What is it?"),
        "too many": parts(red, red, red, text="What is it?"),
        "too long": parts(red, text="word " * 4000),
    }[kind]
    with pytest.raises(urllib.error.HTTPError) as refused:
        said(url, str(sparse), content)
    assert refused.value.code in (400, 500)
    assert said(url, str(sparse), parts(red, text="What is it?"))[0]


def test_a_strip_leaves_a_server_that_answers(url: str, sparse: Path) -> None:
    """A photo of 1 x 3000 pixels becomes one of 224 x 672,000: whether it is answered is the engine's affair."""
    with suppress(urllib.error.HTTPError):
        said(url, str(sparse), parts(Image.new("RGB", (1, 3000), "red"), text="What is it?"))
    assert said(url, str(sparse), parts(Image.new("RGB", (64, 64), "red"), text="What is it?"))[0]


def test_a_client_that_goes_away_leaves_a_server_that_answers(url: str, sparse: Path) -> None:
    for _ in range(4):
        body = {
            "model": str(sparse), "max_tokens": 800, "ignore_eos": True, "stream": True,
            "messages": [{"role": "user", "content": parts(scenes(1)[0][0], text="Describe the photo.")}],
        }  # fmt: skip
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    start = time.monotonic()
    assert said(url, str(sparse), parts(scenes(1)[0][0], text="What is it?"))[0]
    assert time.monotonic() - start < 60


def test_a_benchmark_through_the_server_has_the_table_of_one_in_process(url: str, sparse: Path, tmp_path: Path) -> None:
    photos = open_photos(["scenes:12:1000000"])
    questions = made_questions("scenes", photos)
    host = open_host(sparse, dtype="float32", device="cpu")
    wanted = ask(host, questions, SourcePhotos(photos), max_new_tokens=16)
    found = ask(Endpoint(url), questions, SourcePhotos(photos), max_new_tokens=16, path=tmp_path / "answers.jsonl")
    assert found == wanted
    assert measure("scenes", questions, found).numbers == measure("scenes", questions, wanted).numbers


@pytest.mark.parametrize("kind", ["dense", "reduced", "tiles"])
def test_other_hosts_are_answered_from_as_in_transformers(kind: str, tmp_path: Path) -> None:
    """The dense host as transformers 5 saves it, its own tower with few tokens, and tiles of 49 tokens."""
    folder = tmp_path / kind
    if kind == "dense":
        folder = Path(resolve("llava-tiny"))
    elif kind == "reduced":
        swap_folder(resolve("llava-tiny"), reduce_host(resolve("llava-tiny"), "cls-attention", 49), folder)
    else:
        swap_folder(write_next_host(tmp_path / "next"), resolve("sparseformer-tiny-49"), folder)
    with serving(folder, tmp_path / "log") as address:
        check_same(address, folder, scenes(8))
