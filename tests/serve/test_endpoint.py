"""Questions to a server of OpenAI's interface, beside the same host in process."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfvlm.cli import command
from sfvlm.hosts.host import Host, open_host
from sfvlm.photos.sources import open_photos
from sfvlm.serve.endpoint import Endpoint, checked_url
from sfvlm.serve.load import noise
from sfvlm.vqa.ask import Unanswered, ask, made_questions
from sfvlm.vqa.photos import SourcePhotos

pytest.importorskip("openai")
SOURCE = "scenes:6:1000000"


class StandIn(ThreadingHTTPServer):
    """A server whose model is a host in this process; `trouble` names what happens to requests, by their number."""

    daemon_threads = True

    def __init__(self, host: Host) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host, self.trouble, self.asked = host, dict[int, int | str](), 0
        self.keys: list[str | None] = []
        self.guard = threading.Lock()
        self.models = ["llava"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        cards = [{"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in self.server.models]
        self._send(
            200, {"object": "list", "data": cards} if self.path == "/v1/models" else {"error": {"message": "no"}}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            trouble = self.server.trouble.get(self.server.asked)
            self.server.asked += 1
            self.server.keys.append(self.headers["Authorization"])
        if trouble == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(trouble, int):
            self._send(trouble, {"error": {"message": f"trouble {trouble}", "type": "t", "code": trouble}})
            return
        (message,) = body["messages"]
        images = [_opened(part["image_url"]["url"]) for part in message["content"] if part["type"] == "image_url"]
        (text,) = [part["text"] for part in message["content"] if part["type"] == "text"]
        assert body["temperature"] == 0
        with self.server.guard:
            (said,) = self.server.host.answer(
                [images[0] if images else None], [text], max_new_tokens=body["max_tokens"]
            )
        if body.get("stream"):
            self._stream(said)
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": 77, "completion_tokens": 1, "total_tokens": 78}
        self._send(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "llava",
                "choices": [choice],
                "usage": usage,
            },
        )

    def _stream(self, said: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        base = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "llava"}
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            for word in said.split() or ["?"]
        ]
        usage = {"prompt_tokens": 77, "completion_tokens": len(chunks), "total_tokens": 77 + len(chunks)}
        for chunk in [*chunks, {"choices": [], "usage": usage}]:
            self.wfile.write(f"data: {json.dumps(base | chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "10")
        self.end_headers()
        self.wfile.write(data)


def _opened(url: str) -> Image.Image:
    assert url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.fixture(scope="module")
def host() -> Host:
    return open_host("llava-tiny", device="cpu")


@pytest.fixture
def server(host: Host) -> Iterator[StandIn]:
    with StandIn(host) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def asked() -> tuple[list[Any], SourcePhotos]:
    photos = open_photos([SOURCE])
    return made_questions("scenes", photos)[:6], SourcePhotos(photos)


@pytest.fixture(scope="module")
def wanted(host: Host, asked: Any) -> list[str]:
    """What the host says in process."""
    return ask(host, *asked, max_new_tokens=8)


def test_a_server_is_told_the_same_and_says_the_same(
    server: StandIn, host: Host, asked: Any, wanted: list[str]
) -> None:
    questions, photos = asked
    assert ask(Endpoint(server.url), questions, photos, max_new_tokens=8) == wanted
    assert Endpoint(server.url).answer([None], ["Hello?"], max_new_tokens=4) == host.answer(
        [None], ["Hello?"], max_new_tokens=4
    )


def test_put_off_requests_and_lost_connections_are_asked_again(server: StandIn, asked: Any, wanted: list[str]) -> None:
    questions, photos = asked
    server.trouble = {0: 429, 1: "drop", 2: 500, 5: 503}
    found = ask(Endpoint(server.url, concurrency=2), questions, photos, max_new_tokens=8)
    assert found == wanted and server.asked == len(questions) + 4


def test_a_refused_request_is_said_and_asked_again_by_the_next_call(
    server: StandIn, asked: Any, wanted: list[str], tmp_path: Path
) -> None:
    questions, photos = asked
    server.trouble = {1: 400}
    problems: dict[str, str] = {}
    options: dict[str, Any] = dict(max_new_tokens=8, path=tmp_path / "answers.jsonl")
    found = ask(Endpoint(server.url, concurrency=1), questions, photos, problems=problems, **options)
    assert found[1] == "" and list(problems.values()) == ["status 400: trouble 400"]
    assert ask(Endpoint(server.url), questions, photos, **options) == wanted
    assert server.asked == len(questions) + 1
    assert Unanswered("why") == "" and Unanswered("why").why == "why"


def test_a_server_that_goes_away_leaves_what_it_said(
    server: StandIn, asked: Any, wanted: list[str], tmp_path: Path
) -> None:
    questions, photos = asked
    server.trouble = dict.fromkeys(range(4, 7), 500)
    options: dict[str, Any] = dict(max_new_tokens=8, path=tmp_path / "answers.jsonl", batch_size=2)
    with pytest.raises(ValueError, match=r"status 500: trouble 500"):
        ask(Endpoint(server.url, concurrency=1, retries=2), questions, photos, **options)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4
    so_far = server.asked
    assert ask(Endpoint(server.url), questions, photos, **options) == wanted
    assert server.asked == so_far + 2


def test_what_is_no_server_is_refused_in_a_sentence(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'localhost:1' is no server's address: write it as http://127"):
        checked_url("localhost:1")
    with pytest.raises(ValueError, match=r"No server answers at http://127\.0\.0\.1:9/v1"):
        Endpoint("http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(ValueError, match="has no model 'other'; it has llava"):
        Endpoint(server.url, "other")
    server.models = ["a", "b"]
    with pytest.raises(ValueError, match=r"has 2 models \(a, b\): say which by --server-model"):
        Endpoint(server.url)
    server.trouble = {0: 401}
    monkeypatch.setenv("THEIR_KEY", "secret")
    with pytest.raises(ValueError, match="answers with status 401: trouble 401"):
        Endpoint(server.url, "a", key="THEIR_KEY").answer([None], ["Hello?"])
    assert server.keys == ["Bearer secret"]


def test_the_command_has_one_table_of_a_host_and_a_server(
    server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    flags = ["--benchmark", "scenes", "--photos", SOURCE, "--limit", "4", "--device", "cpu", "--out", str(out)]
    command("vqa", [*flags, "--model", "llava-tiny", "--server", server.url])
    said = capsys.readouterr().out
    assert "prompt tokens" in said and f"llava@127.0.0.1:{server.server_address[1]}" in said
    first, second = json.loads(out.read_text())["results"]
    assert first["metrics"]["accuracy"] == second["metrics"]["accuracy"] and second["metrics"]["prompt_tokens"] == 77
    with pytest.raises(SystemExit):
        command("vqa", [*flags, "--server", server.url, "--server-model", "a", "b"])
    assert "--server-model names 2 models, and --server 1 servers" in capsys.readouterr().err


def test_load_is_measured_in_turns_with_photos_of_their_own(
    server: StandIn, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "load.json"
    with StandIn(host) as second:
        threading.Thread(target=second.serve_forever, daemon=True).start()
        flags = ["--repeats", "1", "--requests", "2", "--new-tokens", "3", "--out", str(out)]
        command("speed", ["--server", server.url, second.url, "--concurrency", "1", "2", *flags])
        second.shutdown()
    said = capsys.readouterr().out
    assert "requests/s" in said and "prompt tokens" in said
    rows = json.loads(out.read_text())["rows"]
    assert [row["concurrency"] for row in rows] == [1, 1, 2, 2] and rows[0]["faster"] == 1
    for row in rows:
        assert row["prompt_tokens"] == 77 and 0 < row["first_word_ms"] <= row["latency_ms"] <= row["latency_95_ms"]
        assert 0 < row["requests_a_second"] < 1e3
    assert server.asked == second.asked == 2 * (2 + 4)  # a round to warm up, and one that counts, of each level


def test_photos_of_load_differ_by_seed_alone() -> None:
    draw = np.random.default_rng(0)
    first, second = noise(draw, 32), noise(draw, 32)
    assert first.tobytes() != second.tobytes() and first.tobytes() == noise(np.random.default_rng(0), 32).tobytes()
