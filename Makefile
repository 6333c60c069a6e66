# make demo    sets up .venv, trains Mask R-CNN with MSVMamba-Nano on the bundled photographs, draws what it found
# make test    sets up .venv, runs the linter and all tests
# make bench   measures the selective scan against other implementations, to benchmarks/results/<machine>.md
# make setup   only the set-up; MMCV=compiled builds the real mmcv (5-10 minutes, needs a C++ compiler)

PYTHON ?= python3
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
# Tests at a time.
JOBS   ?= 2
# Once the compiled mmcv is in place, later runs keep it.
MMCV   ?= $(if $(wildcard $(VENV)/.done-mmcv-compiled),compiled,lite)

.PHONY: setup demo test lint bench clean
.DELETE_ON_ERROR:

demo: setup
	$(VENV)/bin/python tools/demo.py

# One thread for each of the processes: most tests keep no more than one busy, and those that count threads ask for them.
test: setup lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# What the extra `bench` asks for is one of the implementations compared: without it, its column is left out.
bench: setup
	-$(PIP) install --no-deps -c constraints.txt mambapy
	$(VENV)/bin/python benchmarks/scan.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis work_dirs build *.egg-info kernels/_scan_* packaging/mmcv_ops/build packaging/mmcv_ops/*.egg-info

ifeq ($(filter lite compiled,$(MMCV)),)
$(error MMCV is '$(MMCV)', expected lite or compiled)
endif

# Each step leaves a stamp when it has ended: a set-up that was cut off goes on with the step that is missing.
setup: $(VENV)/.done-mmcv-$(MMCV)

$(VENV)/.done-venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "mmmsv needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/a/newer/python")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "This Python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.done-torch: constraints.txt $(VENV)/.done-venv
	$(PIP) install -c constraints.txt torch torchvision setuptools wheel
	@touch $@

$(VENV)/.done-packages: pyproject.toml setup.py $(wildcard kernels/csrc/*) $(VENV)/.done-torch
	$(PIP) install -c constraints.txt -e '.[det,seg,cls,dev]'
# MMEngine asks for opencv-python, which needs libGL and glib from the system; the headless build needs neither.
	$(PIP) uninstall -y opencv-python opencv-python-headless
	$(PIP) install -c constraints.txt opencv-python-headless
	@touch $@

MMCV_OPS := $(wildcard packaging/mmcv_ops/*.toml packaging/mmcv_ops/mmcv/*.py)

# mmcv and mmcv-lite own the same files, so the one goes before the other comes. --no-deps: all that they need is there,
# but for opencv-python, which is not wanted.
$(VENV)/.done-mmcv-lite: constraints.txt $(MMCV_OPS) | $(VENV)/.done-packages
	@rm -f $(VENV)/.done-mmcv-compiled
	$(PIP) uninstall -y mmcv
	$(PIP) install --no-deps -c constraints.txt mmcv-lite
	$(PIP) install --no-deps --force-reinstall ./packaging/mmcv_ops
	@touch $@

$(VENV)/.done-mmcv-compiled: constraints.txt | $(VENV)/.done-packages
	@rm -f $(VENV)/.done-mmcv-lite
	$(PIP) uninstall -y mmcv-lite mmmsv-mmcv-ops
	MMCV_WITH_OPS=1 CFLAGS=-g0 CXXFLAGS=-g0 $(PIP) install --no-build-isolation --no-cache-dir --no-deps -c constraints.txt mmcv
	@touch $@
