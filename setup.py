"""Build script; the metadata is in pyproject.toml."""

import hashlib
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

CPU = Path("mmmsv/kernels/backends/cpu")
# The C++ library is built once for each set of instructions; library.py loads the best one that the processor has. The
# flags are those that torch compiles its own kernels with under the same names. Nothing is linked for OpenMP: torch's
# copy of its runtime is there already.
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

# Lets library.py detect a library that was built from other sources than those beside it.
sources = b"".join(path.read_bytes() for path in sorted((CPU / "csrc").iterdir()))
FLAGS.append(f"-DMMMSV_SOURCES=0x{hashlib.sha256(sources).hexdigest()[:15]}")


# Read at the start of Python; the module is a copy of one that cannot be imported without torch.
START_FILE = "mmmsv_stand_in.pth"
START_LINE = 'import os; os.environ.get("MMMSV_STAND_IN") and __import__("_mmmsv_stand_in").append_finder_if_asked()\n'
START_MODULE = "_mmmsv_stand_in.py"


class BuildWithStartFile(build_py):
    """Put beside the package what reads ``MMMSV_STAND_IN`` at the start of Python."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copyfile("mmmsv/kernels/stand_ins/finder.py", Path(self.build_lib, START_MODULE))
            Path(self.build_lib, START_FILE).write_text(START_LINE)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        beside = [str(Path(self.build_lib, name)) for name in (START_FILE, START_MODULE)]
        return [*super().get_outputs(include_bytecode), *beside]


setup(
    cmdclass={"build_py": BuildWithStartFile},
    ext_modules=[
        Extension(
            f"mmmsv.kernels.backends.cpu._cpu_{name}",
            sorted(map(str, CPU.glob("csrc/*.cpp"))),
            depends=sorted(map(str, CPU.glob("csrc/*.h"))),
            extra_compile_args=[*FLAGS, *OPENMP, *flags],
            language="c++",
            optional=True,  # no compiler: the install goes on, and the scan runs in PyTorch
        )
        for name, flags in INSTRUCTIONS.items()
    ],
)
