"""Asks a served host by many clients at once for a while, good requests and bad ones, and watches the engine's memory.

    .venv-serve/bin/python tests/serve/soak.py --model runs/llava-49 --minutes 30 --out results/serve/soak.json

Ends with exit code 1 if a good request was not answered, a bad one was, or the engine died.
"""

import argparse
import base64
import io
import json
import os
import random
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from sfvlm.photos.scenes import render_scene
from sfvlm.serve.endpoint import as_url
from sfvlm.util.files import make_folder, write_json
from sfvlm.util.provenance import making

# Small caches, which are full soon: what grows after that is a leak.
FLAGS = [
    *("--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager"),
    *("--limit-mm-per-prompt", '{"image":2}', "--mm-processor-cache-gb", "0.25"),
]
MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=8199)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    command = [
        str(Path(sys.executable).with_name("sfvlm")),
        "serve",
        "--model",
        flags.model,
        "--port",
        str(flags.port),
        *FLAGS,
    ]
    quiet = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    log = flags.out.with_suffix(".log")
    make_folder(flags.out.parent)
    with log.open("wb") as file:
        engine = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=file, stderr=subprocess.STDOUT)
    try:
        found = soak(engine, f"http://127.0.0.1:{flags.port}", flags.model, flags.minutes * 60, flags.clients)
    finally:
        engine.terminate()
        code = engine.wait(60)
    found |= {"exit_code": code, "minutes": flags.minutes, "clients": flags.clients}
    command = shlex.join(["python", "tests/serve/soak.py", *sys.argv[1:]])
    write_json(flags.out, found | making() | {"command": command})
    log.unlink()
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["good_not_answered"] or found["bad_answered"] or code))


def soak(engine: "subprocess.Popen[bytes]", url: str, model: str, seconds: float, clients: int) -> dict[str, Any]:
    wait(engine, url)
    counts, latencies, problems, guard = Counter[str](), [], [], threading.Lock()
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            kind = draw.choices(
                ("photo", "text", "broken", "too many", "unknown model", "leaves"), (70, 10, 7, 4, 4, 5)
            )[0]
            start = time.monotonic()
            outcome = ask(url, model, kind, draw)
            with guard:
                counts[f"{kind}: {outcome}"] += 1
                if kind == "photo" and outcome == "answered":
                    latencies.append(time.monotonic() - start)
                good = kind in ("photo", "text")
                if (kind != "leaves") and good != (outcome == "answered"):
                    problems.append(f"{kind}: {outcome}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    memory = [memory_of(engine)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(30.0, seconds / 20))
        memory.append(memory_of(engine))
    took = time.monotonic() - started
    latencies.sort()
    return {
        "requests": sum(counts.values()),
        "by_kind": dict(sorted(counts.items())),
        "good_not_answered": sum(each.startswith(("photo", "text")) for each in problems),
        "bad_answered": sum(not each.startswith(("photo", "text")) for each in problems),
        "requests_a_second": round(sum(counts.values()) / took, 2),
        "photo_seconds_median": round(latencies[len(latencies) // 2], 3),
        "photo_seconds_95": round(latencies[int(len(latencies) * 0.95)], 3),
        "memory_mb": memory,
    }


def ask(url: str, model: str, kind: str, draw: random.Random) -> str:
    image = render_scene(draw.randrange(2000), 11, 224).image.resize((draw.randrange(64, 640), draw.randrange(64, 640)))
    photo = as_url(image)
    if kind == "broken":
        file = io.BytesIO()
        image.save(file, "PNG")
        photo = "data:image/png;base64," + base64.b64encode(file.getvalue()[: draw.randrange(20, 200)]).decode()
    shown = {"text": 0, "too many": 3}.get(kind, 1)
    content = [
        *({"type": "image_url", "image_url": {"url": photo}} for _ in range(shown)),
        {"type": "text", "text": "What is it?"},
    ]
    body = {
        "model": "another" if kind == "unknown model" else model,
        "max_tokens": draw.randrange(1, 48),
        "temperature": 0,
        "stream": kind == "leaves",
        "messages": [{"role": "user", "content": content}],
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            if kind == "leaves":
                return "left"
            return "answered" if json.load(answer)["usage"]["completion_tokens"] > 0 else "empty"
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except OSError as error:
        return type(error).__name__


def wait(engine: "subprocess.Popen[bytes]", url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            if engine.poll() is not None:
                raise SystemExit("the engine ended before it could answer") from None
            time.sleep(0.5)


def memory_of(engine: "subprocess.Popen[bytes]") -> int:
    """Resident memory of all of the engine's processes, in MB."""
    total = 0
    for process in psutil.Process(engine.pid).children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total // MB


if __name__ == "__main__":
    main()
