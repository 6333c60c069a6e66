"""Describe the machine that measurements ran on."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from mmmsv.kernels import BACKENDS, linear
from mmmsv.kernels.dispatch import select

from .clock import clock

# Side of the square matrices whose product shows what the machine can do.
_SIDE = 2048
# Instructions for products in bfloat16 and of whole numbers, as Linux calls them.
_NARROW = ("avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


def name(device: torch.device) -> str:
    """Name the machine for a file: its GPU, or its processor and how many cores of it are here."""
    model = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    cores = f" {_cores()} cores" if device.type == "cpu" else ""
    return re.sub(r"[^a-z0-9]+", "-", (model + cores).lower()).strip("-")


def processor() -> str:
    """Return the name of the processor, with the numbers of its family and model, which tell designs apart."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    numbers = ", ".join(f"{key.removeprefix('cpu ')} {info[key]}" for key in ("cpu family", "model") if key in info)
    return f"{name} ({numbers})" if numbers else name


def vector_instructions() -> str:
    """Return the set of vector instructions that torch uses, and those for products in narrow dtypes that are here."""
    flags = _cpuinfo().get("flags", "").split()
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *(flag for flag in _NARROW if flag in flags)])


def product_speed(device: torch.device) -> float:
    """Return the FLOP/s of the fastest of some products of square matrices in float32: what products can reach."""
    x, weight = torch.rand(2, _SIDE, _SIDE, device=device)
    products = (lambda: torch.mm(x, weight), lambda: linear(x[None, None], weight))
    measure = clock(device)
    with torch.no_grad():
        fastest = min(measure(product, 1) for _ in range(4) for product in products)
    return 2 * _SIDE**3 / fastest


def facts(device: torch.device) -> dict[str, str]:
    """Return what a reader must know to compare the figures with others, by its name."""
    gpu = {}
    if device.type == "cuda":
        gpu = {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
    load = _load()  # before the product, which is one
    return {
        **gpu,
        "processor": f"{processor()}, {_cores()} cores",
        "vector instructions": vector_instructions(),
        "threads": str(torch.get_num_threads()),
        f"product of {_SIDE} x {_SIDE}": f"{product_speed(device) / 1e9:.0f} GFLOP/s in float32",
        "load before the start": "unknown" if load is None else f"{load:.1f} processes",
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
    }


def scan_backend(device: torch.device) -> str:
    """Return the name of the backend that scans on ``device``.

    Raises:
        ValueError: The environment asks for a scan backend that does not exist.
        RuntimeError: It asks for one that cannot run here.
    """
    return select(lambda backend: None if backend.scan2d is None else backend.name, device)


def choices(device: torch.device) -> dict[str, str]:
    """Return what the backend that scans on ``device`` has chosen for this machine, by what it is for."""
    return BACKENDS[scan_backend(device)].choices()


def why_unreliable() -> str | None:
    """Say in one sentence that other programs keep the cores busy, if so."""
    load = _load()
    if load is None or load <= _cores() / 2:
        return None
    return f"the load is {load:.1f} on {_cores()} cores: beside other programs times are too long, ratios perhaps off"


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first core, by its name; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else ""
    return dict(re.findall(r"^(.+?)\s*:[ \t]*(.*?)\s*$", first, re.MULTILINE))


def _load() -> float | None:
    """Return how many processes ran or waited in the last minute; None where the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str:
    try:
        # An installed copy may lie inside of the repository of something else, which does not know this file.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        commit, changes = (_git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown, no git repository"
    return f"{commit} and changes that are not committed" if changes else commit


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(Path(__file__).parent), *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
