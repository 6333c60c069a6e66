"""Build script; the metadata is in pyproject.toml."""

from setuptools import find_packages, setup

# kernels/ stands at the top of the repository, being useful without the rest, and is installed as mmmsv.kernels.
setup(
    packages=[*find_packages(include=["mmmsv", "mmmsv.*"]), "mmmsv.kernels"],
    package_dir={"mmmsv.kernels": "kernels"},
)
