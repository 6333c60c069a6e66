# make demo        sets up .venv, trains Mask R-CNN with MSVMamba-Nano on the bundled photographs, draws what it found
# make check       sets up .venv, runs the linter, the type checker and the fast tests: a minute and a half
# make test        sets up .venv, runs the linter, the type checker and all tests
# make test-fork   sets up .venv-fork with the maintained fork of OpenMMLab, runs the tests that concern it
# make test-oldest sets up .venv-oldest with torch 2.1 and the oldest OpenMMLab that is supported, runs the tests there
# make test-wheel  builds the wheel, installs it in .venv-wheel, and uses it from outside the checkout
# make simulate    runs the tests of the Triton kernels on a simulated GPU: values, overruns and races
# make zoo         counts what every config costs, and writes metafiles and the tables of the zoo
# make gallery     trains on the bundled photographs, and makes the pictures of docs/gallery.md, half an hour
# make bench       measures the selective scan against other implementations, to benchmarks/results/<machine>.md
# make gpu         goes through one round on a GPU: tests, sanitizers, kernels, models; results to GPU_OUT
# make setup       only the set-up; MMCV=compiled builds the real mmcv (5-10 minutes, needs a C++ compiler); LOCKED=1
#                  installs the versions of packaging/locked, and no file whose hash is not there
# make lock        renews packaging/locked: the newest versions that pyproject.toml and constraints.txt allow
# make audit       asks for known vulnerabilities of what is locked
# make release     builds wheel and source distribution in dist, with an SBOM and checksums

PYTHON ?= python3
# The environment, its pinned versions, what is installed in it beside torch and mmcv, and mmcv without its ops. The
# targets for other environments call make again with others of these.
VENV        := .venv
CONSTRAINTS := constraints.txt
PACKAGES    := -e '.[det,seg,cls,dev]'
MMCV_LITE   := mmcv-lite
# What pytest runs; nothing: all tests.
TESTS       :=
FORK_TESTS   := $(addprefix tests/test_,any_config checkpoints configs end_to_end engine environment/test_mmcv_ops.py packaging)
OLDEST_TESTS := $(addprefix tests/test_,any_config checkpoints compat configs end_to_end engine environment kernels models)

PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
# Tests at a time.
JOBS   ?= 2
# Once the compiled mmcv is in place, later runs keep it.
MMCV   ?= $(if $(wildcard $(VENV)/.done-mmcv-compiled),compiled,lite)
# As it is with an environment that was locked.
LOCKED ?= $(wildcard $(VENV)/.done-packages-locked)
# Every package with its version and the hashes of its files.
LOCK   := packaging/locked/environment.txt

.PHONY: setup demo check test pytest test-fork test-oldest test-wheel simulate lint zoo gallery bench gpu lock audit release release-tools clean
.DELETE_ON_ERROR:

demo: setup
	$(VENV)/bin/python tools/demo.py

test: lint pytest

# The lanes are in tests/README.md.
check: lint
	$(MAKE) pytest TESTS='-m "not slow and not end_to_end"'

# One thread for each of the processes: most tests keep no more than one busy, and those that count threads ask for them.
# In the order of the folders: by itself xdist keeps files of few tests for the end, and those here are the long ones.
pytest: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

# pip builds onedl-mmcv apart from torch, without which it leaves its ops out.
test-fork:
	$(MAKE) pytest VENV=.venv-fork CONSTRAINTS=constraints-fork.txt \
		PACKAGES="-e '.[fork,dev]'" MMCV_LITE=onedl-mmcv MMCV=lite TESTS='$(FORK_TESTS)'

# The oldest versions that pyproject.toml allows. torch 2.1 has builds up to Python 3.11.
test-oldest:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info < (3, 12) else "torch 2.1 needs Python 3.10 or 3.11, this is " + sys.version.split()[0] + ": make test-oldest PYTHON=/path/to/python3.11")'
	$(MAKE) pytest VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt MMCV=lite TESTS='$(OLDEST_TESTS)'

# The wheel is built from the source distribution, so that both are tested, and is used from outside the checkout.
test-wheel:
	$(MAKE) .venv-wheel/.done-torch VENV=.venv-wheel
	rm -rf build/wheel .venv-wheel/.done-packages
	.venv-wheel/bin/python -m pip install build
	.venv-wheel/bin/python -m build --outdir build/wheel
	.venv-wheel/bin/python -m pip uninstall -y mmmsv
	$(MAKE) setup VENV=.venv-wheel PACKAGES="$$(ls build/wheel/*.whl)[det,dev]" MMCV=lite
	cd / && $(CURDIR)/.venv-wheel/bin/python -m pytest --import-mode=importlib $(CURDIR)/tests/test_packaging/wheel.py

# Every case that a GPU would run, and random arguments; what is compiled stays in build/simulator for the next time.
simulate:
	MMMSV_SIMULATE=1 MMMSV_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(MAKE) pytest \
		TESTS='tests/simulator tests/test_kernels -k "$(SIMULATED_TESTS)"'
SIMULATED_TESTS := simulator or triton or test_fuzz and (test_maps or test_sequences)
FUZZ_EXAMPLES   ?= 20

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(VENV)/bin/python

# Half a minute; with --check it writes nothing, and says what differs.
zoo: setup
	$(VENV)/bin/python -m benchmarks.zoo

# The networks are trained once; remove work_dirs/gallery to train them again.
gallery: setup
	$(VENV)/bin/python -m benchmarks.gallery

# What the extra `bench` asks for is one of the implementations compared: without it, its column is left out.
bench: setup
	-$(PIP) install --no-deps -c $(CONSTRAINTS) mambapy
	$(VENV)/bin/python -m benchmarks.scan

# Without the set-up, where torch and the rest are there already: python -m benchmarks.gpu --out DIR.
GPU_OUT ?= benchmarks/results/gpu
gpu: setup
	$(VENV)/bin/python -m benchmarks.gpu --out $(GPU_OUT)

# The tools of the three targets below, locked as the environment is.
RELEASE := .venv-release/bin
release-tools:
	$(MAKE) .venv-release/.done-locked VENV=.venv-release LOCK=packaging/locked/release.txt

# For every Python and system that is supported. The files name packages and hashes, and no place to get them from.
COMPILE := $(RELEASE)/uv pip compile --no-config --quiet --upgrade --generate-hashes --universal --python-version 3.10 \
	--no-python-downloads --custom-compile-command 'make lock' -c constraints.txt
lock: release-tools
	echo opencv-python | $(COMPILE) --excludes /dev/stdin --extra det --extra seg --extra cls --extra dev \
		-o packaging/locked/environment.txt pyproject.toml packaging/locked/environment.in
	$(COMPILE) -o packaging/locked/release.txt packaging/locked/release.in

audit: release-tools
	$(RELEASE)/pip-audit --disable-pip --require-hashes --strict -r packaging/locked/environment.txt

# Of one commit, built twice by one compiler, the wheel and the SBOM are the same to the byte. For the SBOM the version
# is written into pyproject.toml, which says that setuptools reads it from the code.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' mmmsv/__init__.py)
release: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct)
release: release-tools
	rm -rf dist
	$(RELEASE)/python -m build --no-isolation
	sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml | $(RELEASE)/cyclonedx-py requirements \
		--output-reproducible --mc-type library --pyproject /dev/stdin -o dist/mmmsv-$(VERSION).cdx.json \
		packaging/locked/environment.txt
	cd dist && sha256sum mmmsv-$(VERSION)* > SHA256SUMS

clean:
	rm -rf .venv* .pytest_cache .ruff_cache .hypothesis work_dirs build dist *.egg-info mmmsv/kernels/backends/cpu/_cpu_* packaging/mmcv_ops/build packaging/mmcv_ops/*.egg-info

ifeq ($(filter lite compiled,$(MMCV)),)
$(error MMCV is '$(MMCV)', expected lite or compiled)
endif
ifneq ($(LOCKED),)
ifneq ($(MMCV) $(CONSTRAINTS),lite constraints.txt)
$(error LOCKED=1 goes with mmcv-lite and constraints.txt only, not with MMCV=$(MMCV) and $(CONSTRAINTS))
endif
endif

# Each step leaves a stamp when it has ended: a set-up that was cut off goes on with the step that is missing.
setup: $(VENV)/.done-$(if $(LOCKED),packages-locked,mmcv-$(MMCV))

$(VENV)/.done-venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "mmmsv needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/a/newer/python")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "This Python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.done-torch: $(CONSTRAINTS) $(VENV)/.done-venv
	$(PIP) install -c $(CONSTRAINTS) torch torchvision setuptools wheel
	@touch $@

PROJECT := pyproject.toml setup.py $(wildcard mmmsv/kernels/backends/cpu/csrc/*)

$(VENV)/.done-packages: $(PROJECT) $(VENV)/.done-torch
	@rm -f $(VENV)/.done-packages-locked
	$(PIP) install -c $(CONSTRAINTS) $(PACKAGES)
# MMEngine asks for opencv-python, which needs libGL and glib from the system; the headless build needs neither.
	$(PIP) uninstall -y opencv-python opencv-python-headless
	$(PIP) install -c $(CONSTRAINTS) opencv-python-headless
	@touch $@

MMCV_OPS := $(wildcard packaging/mmcv_ops/*.toml packaging/mmcv_ops/mmcv/*.py)

# mmcv and mmcv-lite own the same files, so the one goes before the other comes. --no-deps: all that they need is there,
# but for opencv-python, which is not wanted.
$(VENV)/.done-mmcv-lite: $(CONSTRAINTS) $(MMCV_OPS) | $(VENV)/.done-packages
	@rm -f $(VENV)/.done-mmcv-compiled
	$(PIP) uninstall -y mmcv
	$(PIP) install --no-deps -c $(CONSTRAINTS) $(MMCV_LITE)
	$(PIP) install --no-deps --force-reinstall ./packaging/mmcv_ops
	@touch $@

$(VENV)/.done-mmcv-compiled: $(CONSTRAINTS) | $(VENV)/.done-packages
	@rm -f $(VENV)/.done-mmcv-lite
	$(PIP) uninstall -y mmcv-lite mmmsv-mmcv-ops
	MMCV_WITH_OPS=1 CFLAGS=-g0 CXXFLAGS=-g0 $(PIP) install --no-build-isolation --no-cache-dir --no-deps -c $(CONSTRAINTS) mmcv
	@touch $@

# Wheels only: what builds a source distribution would be fetched without a hash.
$(VENV)/.done-locked: $(LOCK) $(VENV)/.done-venv
	$(PIP) install --require-hashes --no-deps --only-binary :all: -r $(LOCK)
	@touch $@

# What is built here is built with the setuptools that is locked.
$(VENV)/.done-packages-locked: $(PROJECT) $(MMCV_OPS) $(VENV)/.done-locked
	@rm -f $(VENV)/.done-torch $(VENV)/.done-packages $(VENV)/.done-mmcv-*
	$(PIP) install --no-build-isolation --no-deps $(PACKAGES)
# By which mim finds mmmsv from the checkout; pip leaves it there only where it isolates the build.
	$(VENV)/bin/python setup.py -q egg_info
	$(PIP) install --no-build-isolation --no-deps --force-reinstall ./packaging/mmcv_ops
	@touch $@
