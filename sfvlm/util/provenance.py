"""How a results file came about: the command, the machine, the date and the versions. The same for all that is measured."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

CPU_INFO = Path("/proc/cpuinfo")
# What decides how fast a processor multiplies, as Linux calls it; the last two are Arm's.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")


def provenance(*packages: str) -> dict[str, Any]:
    """The date, and the versions of these packages: what a results file or manifest says of its making."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "versions": {name: importlib.metadata.version(name) for name in packages}}


def making(device: torch.device | str | None = None) -> dict[str, Any]:
    """What every file says that a command has measured: command, machine, date, versions.

    Args:
        device: What was computed on; None for what no device matters to.
    """
    found = provenance("sfvlm", "torch", "transformers", "numpy", "pillow")
    found["versions"]["python"] = platform.python_version()
    return {"command": recorded_command(sys.argv), "machine": machine(device), **found}


def recorded_command(arguments: Sequence[str]) -> str:
    """A command as people type it: of where the program lies, its last folder alone is kept."""
    program = Path(arguments[0])
    if program.suffix == ".py" and program.parent.name in ("eval", "scripts"):
        words = ["python", f"{program.parent.name}/{program.name}"]
    else:  # installed as sfvlm, or run as a module
        words = ["sfvlm"]
    return shlex.join([*words, *arguments[1:]])


def machine(device: torch.device | str | None = None) -> dict[str, Any]:
    """What the measuring ran on: the processor and what it can do, the cores it may use, torch's threads, the device."""
    found: dict[str, Any] = {
        "cpu": cpu_info("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in (cpu_info("flags") or cpu_info("Features")).split()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device is not None:
        where = torch.device(device)
        found["device"] = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    return found


def cpu_info(name: str) -> str:
    """A field of the first processor, as Linux has it; "" where there is none."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return ""
