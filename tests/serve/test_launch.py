"""What the engine is told of a folder, and how it is started and ended, with a program in its place."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoProcessor

from sfvlm.alternatives.towers import reduce_host
from sfvlm.cli import command
from sfvlm.hosts.swap import swap_folder, undo_folder
from sfvlm.hosts.template import start_is_left_to_tokenizer
from sfvlm.serve.folder import read_served
from sfvlm.serve.launch import Server, curl
from sfvlm.zoo.names import resolve

# In the place of vLLM's server: answers /health, and tells how it was called.
ENGINE = """
import http.server, json, os, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--chat-template" in flags:
    flags["template"] = open(flags["--chat-template"]).read()
json.dump(flags, open(os.environ["TOLD"], "w"))
if "--die" in flags:
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer((flags["--host"], int(flags["--port"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "llava-49"
    swap_folder(resolve("llava-tiny"), resolve("sparseformer-tiny-49"), folder)
    return folder


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `vllm` beside which sfvlm lies; gives where it tells how it was called."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{Path(__file__).parents[2]}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told.json"))
    return tmp_path / "told.json"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_swapped_folder_needs_no_flag_and_a_dense_one_of_transformers_5_needs_the_backend(
    swapped: Path, tmp_path: Path
) -> None:
    ours = read_served(swapped)
    assert (ours.tower, ours.tokens, ours.backend, ours.template) == ("sparse", 49, False, None)
    swap_folder(resolve("llava-tiny"), reduce_host(resolve("llava-tiny"), "average", 16), tmp_path / "reduced")
    reduced = read_served(tmp_path / "reduced")
    assert (reduced.tower, reduced.tokens, reduced.backend) == ("reduced", 16, False)
    undo_folder(swapped, tmp_path / "dense")
    dense = read_served(tmp_path / "dense")
    assert dense.tower == "dense" and dense.backend
    assert dense.flags == ["--generation-config", "vllm", "--model-impl", "transformers"]


def test_what_no_server_opens_is_refused_with_the_way_out(swapped: Path, tmp_path: Path) -> None:
    for facts, expected in (
        (None, "is no folder with a config.json"),
        ({"mm_vision_tower": "x"}, r"convert it first \(sfvlm convert\)"),
        (
            {"model_type": "sparseformer"},
            r"is a tower alone, and a server needs a host: put it into one first \(sfvlm swap\)",
        ),
    ):
        folder = tmp_path / str(abs(hash(expected)))
        folder.mkdir()
        if facts is not None:
            (folder / "config.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=expected):
            read_served(folder)
    with_adapter = tmp_path / "adapter"
    shutil.copytree(swapped, with_adapter)
    (with_adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter: merge it"):
        read_served(with_adapter)


def test_a_template_that_leaves_the_start_to_the_tokenizer_is_handed_on_with_it(swapped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    shutil.copytree(swapped, folder)
    path = folder / "chat_template.jinja"
    whole = path.read_text()
    path.write_text(whole.removeprefix("{{ bos_token }}"))
    assert read_served(folder).template == whole
    assert start_is_left_to_tokenizer(AutoProcessor.from_pretrained(folder))
    undo_folder(folder, tmp_path / "dense")
    with pytest.warns(UserWarning, match=r"leaves <s>, which prompts start with, to the tokenizer"):
        swap_folder(tmp_path / "dense", resolve("sparseformer-tiny-49"), tmp_path / "again")


def started(*flags: str) -> "subprocess.Popen[str]":
    code = "from sfvlm.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_engine_gets_its_flags_and_ends_with_the_command(swapped: Path, engine: Path, number: int) -> None:
    port = free_port()
    flags = ["--tensor-parallel-size", "2", "--dtype", "float32"]
    process = started("--model", str(swapped), "--port", str(port), *flags)
    said = ""
    while "curl" not in said and (line := process.stdout.readline()):  # type: ignore[union-attr]
        said += line
    assert f"Serving {swapped} at http://127.0.0.1:{port}/v1 until Ctrl-C" in said and "49 tokens a photo" in said
    told = json.loads(engine.read_text())
    wanted = {"--model": str(swapped), "--host": "127.0.0.1", "--port": str(port), "--generation-config": "vllm"}
    assert told == wanted | {"--tensor-parallel-size": "2", "--dtype": "float32"}
    process.send_signal(number)
    assert process.wait(30) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_engine_that_ends_early_and_a_taken_port_are_said(swapped: Path, engine: Path) -> None:
    process = started("--model", str(swapped), "--port", str(free_port()), "--die", "yes")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "The engine ended with exit code 3 before it could answer" in errors
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = started("--model", str(swapped), "--port", str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "cannot be listened at" in errors and "give another --port" in errors


def test_without_the_engine_one_sentence_says_what_is_missing(
    swapped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        command("serve", ["--model", str(swapped), "--python", sys.executable])
    assert ended.value.code == 2
    assert f"vLLM is not installed for {sys.executable}: pip install vllm there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("serve", ["--model", str(swapped), "--python", "/no/python"])
    assert "--python /no/python cannot be started" in capsys.readouterr().err


def test_the_first_question_names_the_model_as_requests_do() -> None:
    server = Server("runs/llava-49", port=8001, flags=("--served-model-name", "llava", "--seed", "1"))
    assert server.name == "llava" and Server("m", flags=("--served-model-name=n",)).name == "n"
    assert curl(server).startswith("curl http://127.0.0.1:8001/v1/chat/completions") and '"model": "llava"' in curl(
        server
    )
    words = shlex.split(
        curl(Server("it's here")).replace("'$(base64 -w0 photo.jpg)'", "a")
    )  # what the shell puts there
    assert json.loads(words[-1])["model"] == "it's here" and len(words) == 6
    assert Server("m").name == "m" and '"model": "m"' in curl(Server("m"))
    assert (
        Server("m", host="::").url == "http://127.0.0.1:8000/v1"
        and Server("m", host="::1").url == "http://[::1]:8000/v1"
    )
