"""Claims about the `sfvlm` command as a whole; what each command does is tested with its module."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfvlm.cli import COMMANDS, command, modules_of

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "transformers", "numpy", "PIL", "tqdm", "huggingface_hub", "safetensors"}


def test_no_help_imports_torch_or_what_else_is_heavy() -> None:
    """The list of commands, and the flags of each: in one process, which has imported nothing before."""
    code = """
import io, sys
from contextlib import redirect_stdout
from sfvlm.cli import COMMANDS, main
for arguments in ([], ["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)):
    said = io.StringIO()
    with redirect_stdout(said):
        try:
            main(arguments)
        except SystemExit as stopped:
            assert stopped.code == 0
    assert len(said.getvalue()) > 400, arguments
    loaded = sorted(set(sys.argv[1:]) & set(sys.modules))
    assert not loaded, (arguments, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("script", ["scripts/swap_llava_tower.py", "eval/vqa.py"])
def test_a_script_reads_its_flags_before_it_imports_torch(script: str) -> None:
    """A mistyped flag too: what is wrong with it is said at once."""
    code = """
import runpy, sys
sys.argv = [sys.argv[1], "--no-such-flag"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stopped:
    assert stopped.code == 2
else:
    raise AssertionError
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "--no-such-flag" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_options_and_action_of_every_command_are_there(name: str) -> None:
    options, action = COMMANDS[name]
    light, module = map(importlib.import_module, modules_of(name))
    assert getattr(module, options) is getattr(light, options)
    assert callable(getattr(module, action))


def test_a_command_gets_the_flags_that_were_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr("sfvlm.commands.boxes.boxes_command", asked.append)
    flags = ["--model", "m", "--photo", "p", "--out", str(tmp_path / "b.png")]
    command("boxes", flags)
    monkeypatch.setattr(sys, "argv", ["a script", *flags])
    command("boxes")
    assert len(asked) == 2 and asked[0] == asked[1] and asked[0].out == tmp_path / "b.png"
