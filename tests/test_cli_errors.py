"""What a command says where the system refuses something: one sentence, and mistakes of the program as what they are."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import sfvlm
from sfvlm.cli import run
from sfvlm.hosts.folders import swap_folder
from sfvlm.hosts.host import open_host
from sfvlm.util.console import say
from sfvlm.util.errors import NotWritten
from sfvlm.vqa.retained import SCORES, read_scores

PROGRAM = """
from dataclasses import dataclass
from sfvlm.cli import run
from sfvlm.util.console import say
@dataclass
class Options: pass
"""


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def raising(error: BaseException) -> Callable[[Options], None]:
    def action(_: Options) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "photos/a b.jpg"),
            "photos/a b.jpg: No such file or directory.",
        ),
        (IsADirectoryError(21, "Is a directory", b"photos"), "photos: Is a directory."),
        (OSError(24, "Too many open files", "list"), "list: Too many open files."),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "a to b: Invalid cross-device link."),
        (OSError(28, "No space left on device"), "No space left on device."),
        (OSError(30, "Read-only file system"), "Read-only file system."),
        (
            NotWritten(Path("out"), "Disk quota exceeded"),
            "out cannot be written: Disk quota exceeded. Nothing of it is left; ",
        ),
        (ValueError("--out is a.txt; it must end in .json."), "--out is a.txt; it must end in .json."),
    ],
)
def test_what_people_can_mend_is_one_sentence(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(raising(error), Options, [])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.startswith(f"error: {sentence}") and printed.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        TypeError("x"),
        RuntimeError("x"),
        KeyError("x"),
        OSError("x"),
        OSError(9, "Bad file descriptor"),
        ConnectionResetError(104, "x"),
    ],
)
def test_mistakes_of_the_program_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        run(raising(error), Options, [])
    assert caught.value is error


def outcome(body: str, shell: str = "", **environment: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command whose action is `body`; `shell` follows it."""
    program = f"{PROGRAM}def action(_):\n    {body}\nrun(action, Options, [])"
    words = ["bash", "-c", f'"$0" -c "$1" {shell}; exit ${{PIPESTATUS[0]}}', sys.executable, program]
    done = subprocess.run(words, capture_output=True, env={**os.environ, **environment}, timeout=100)
    return done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_sentence() -> None:
    code, _, error = outcome("say('a')", "> /dev/full")
    assert code == 2
    assert error.startswith("error: The standard output cannot be written: No space left on device.")
    assert error.count("\n") == 1


def test_who_reads_no_further_stops_no_work(tmp_path: Path) -> None:
    body = f"[say('line ' * 20) for _ in range(20000)]; open({str(tmp_path / 'results')!r}, 'w').write('whole')"
    code, printed, error = outcome(body, "| head -n 1")
    assert (code, error, printed.count("\n")) == (0, "", 1)
    assert (tmp_path / "results").read_text() == "whole"


def test_an_output_that_is_closed_stops_no_work(tmp_path: Path) -> None:
    assert outcome(f"say('a'); open({str(tmp_path / 'results')!r}, 'w').write('whole')", ">&-")[0] == 0
    assert (tmp_path / "results").read_text() == "whole"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_an_output_of_few_letters_gets_the_others_spelled_out(encoding: str) -> None:
    code, printed, error = outcome("say('\\u732b\\u00e9 \\udcff')", PYTHONIOENCODING=f"{encoding}:strict")
    assert (code, error) == (0, "")
    letters = "\u732b\u00e9 \ufffd".encode(encoding, "backslashreplace")
    assert printed == letters.decode("utf-8", "surrogateescape") + "\n"


COMMAND = re.compile(r"\((sfvlm convert .*) --out DIR\)")


def test_commands_that_are_printed_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = tmp_path / "my $HOME's (new) host"
    host.mkdir()
    (host / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    for opened in (lambda: open_host(host), lambda: swap_folder(host, host, tmp_path / "out")):
        with pytest.raises(ValueError, match=COMMAND) as refused:
            opened()
        found = COMMAND.search(str(refused.value))
        assert found is not None and shlex.split(found[1]) == ["sfvlm", "convert", "--checkpoint", str(host)]
    results = host / "vqa.json"
    results.write_text("{}")
    results.with_suffix(SCORES).write_text("{}")
    with pytest.raises(ValueError, match="is damaged") as damaged:
        read_scores(results)
    assert shlex.split(str(damaged.value).partition("eval/vqa.py ")[2].rstrip("."))[1] == str(results)


def test_no_command_is_printed_with_a_path_that_is_not_quoted() -> None:
    root = Path(sfvlm.__file__).parents[1]
    files = [file for folder in ("sfvlm", "scripts", "demo", "eval") for file in (root / folder).rglob("*.py")]
    pasted = re.compile(
        r"--(?:out|host|model|tower|teacher|checkpoint|photos|data|results|questions|answers) \{(?!shlex\.)"
    )
    found = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if pasted.search(line)]
    assert files and not found


def test_say_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    say("caf\u00e9")
    assert capsys.readouterr().out == "caf\u00e9\n"
