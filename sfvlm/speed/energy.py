"""What a device has drawn so far, where its driver counts: NVIDIA's by NVML, a Linux machine's processors by RAPL.

    meter = open_meter(device)      None where nothing counts, or where only the administrator may read it
    before = meter(); ...; joules = meter() - before

A counter is of the whole device: what it draws idle and what other processes use are in it.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Meter = Callable[[], float]  # joules since some moment
RAPL = Path("/sys/class/powercap")


def open_meter(device: torch.device) -> Meter | None:
    """The counter of a device, if there is one that can be read."""
    if device.type == "cuda":
        return _nvml_meter(device)
    return rapl_meter() if device.type == "cpu" else None


def _nvml_meter(device: torch.device) -> Meter | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        # By its id: the driver counts devices that CUDA_VISIBLE_DEVICES hides.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # from mJ


def rapl_meter(folder: Path = RAPL) -> Meter | None:
    """All processor packages of a machine together: `intel-rapl:0`, `intel-rapl:1` ... (AMD's have that name too).

    Their domains (`intel-rapl:0:0` ...) are parts of them. A counter starts anew at `max_energy_range_uj`.
    """
    packages = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
    try:
        ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        last = [_counted(package) for package in packages]
    except OSError:
        return None
    if not packages:
        return None
    total = 0

    def meter() -> float:
        nonlocal last, total
        found = [_counted(package) for package in packages]
        total += sum((new - old) % size for new, old, size in zip(found, last, ranges, strict=True))
        last = found
        return total / 1e6

    return meter


def _counted(package: Path) -> int:
    return int((package / "energy_uj").read_text())
