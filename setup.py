"""Build script; the metadata is in pyproject.toml."""

import hashlib
import platform
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

SOURCES = Path("kernels/csrc")
# What runs on CPUs, once for each set of instructions; kernels/native_library.py takes the best that the processor has.
# The flags are those that torch compiles its own kernels with under the same names. Nothing is linked for OpenMP:
# torch's copy of its runtime is there already.
X86 = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}
INSTRUCTIONS = {**(X86 if platform.machine() in ("x86_64", "AMD64") else {}), "baseline": []}
OPENMP = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-g0",
]

# By which kernels/native_library.py knows a library that was built from other sources than those beside it.
sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
FLAGS.append(f"-DMMMSV_SOURCES=0x{hashlib.sha256(sources).hexdigest()[:15]}")

setup(
    # kernels/ stands at the top of the repository, being useful without the rest, and is installed as mmmsv.kernels.
    packages=[*find_packages(include=["mmmsv", "mmmsv.*"]), "mmmsv.kernels"],
    package_dir={"mmmsv.kernels": "kernels"},
    ext_modules=[
        Extension(
            f"mmmsv.kernels._cpu_{name}",
            sorted(map(str, SOURCES.glob("*.cpp"))),
            depends=sorted(map(str, SOURCES.glob("*.h"))),
            extra_compile_args=[*FLAGS, *OPENMP, *flags],
            language="c++",
            optional=True,  # no compiler: the install goes on, and the scan runs in PyTorch
        )
        for name, flags in INSTRUCTIONS.items()
    ],
)
