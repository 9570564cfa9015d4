"""The command that serves a host by vLLM."""

from pathlib import Path

from ...serve.folder import read_served
from ...serve.launch import Server, check_engine, serve
from ...util.console import say
from ...zoo.names import resolve
from .options import ServeCommand


def serve_command(command: ServeCommand) -> None:
    """Says what is served, starts the engine and stays until it ends; its exit code is the command's."""
    if not 1 <= command.port <= 65535:
        raise ValueError(f"--port is {command.port}; ports are 1 to 65535.")
    check_engine(command.python)
    folder = Path(resolve(command.model))
    served = read_served(folder) if folder.exists() else None
    if served is None and folder.is_absolute():
        raise ValueError(f"There is no host in {command.model}: the folder does not exist.")
    server = Server(
        str(folder) if served is not None else command.model,
        command.python,
        command.host,
        command.port,
        command.engine_flags,
    )
    if served is not None and served.tokens is not None:
        say(f"{command.model} has {served.tokens} tokens a photo or tile.")
    if served is not None and served.backend:
        say("Its dense tower has the names of transformers 5, which the engine reads by --model-impl transformers.")
    if served is not None and served.template is not None:
        say(
            "Its chat template leaves the start of a prompt to the tokenizer; the engine gets it with the start written."
        )
    code = serve(server, served)
    if code:
        raise SystemExit(code)
