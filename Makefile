# Everything a fresh Debian or Ubuntu needs, from one command:
#
#   make demo            segments a CT phantom and shows how well that went       (make demo CT=my_ct.nii.gz OUT=folder)
#   make test            linters, type checker and tests
#   make test-dicom      the tests with a PACS and the DICOM programs of others  (apt: orthanc orthanc-dicomweb dicom3tools)
#   make test-slicer-5.11  the tests of the Slicer module with the MRML of Slicer 5.11 instead of 5.12
#   make setup           only the environment for `sam2assist`, in .venv
#   make clean           deletes caches and the demo's results;   make distclean  also .venv
#
# Nothing outside this folder is changed. Wanted from apt: python3 (3.10 or newer), python3-venv.
# The tests of the Slicer module's window want libegl1, libgl1 and libgl1-mesa-dri too, and are skipped without.
#
# The order below matters (see pyproject.toml): torch in the build that fits the machine, then sam2, which builds against it,
# then this package. Each step leaves a stamp in .venv, so a second run starts at once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
OUT ?= demo-output
CT ?=
PYTEST_ARGS ?=
# Processes that share the tests, file by file; each needs 2 GB.
WORKERS ?= 2
# Read by the shell and not by make, so that any character may be in a file name.
export CT OUT

TORCH_VERSION ?= 2.13.0
# Where PyTorch publishes builds without CUDA; PyPI's build for Linux contains CUDA and is several gigabytes.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
SAM2_VERSION ?= 1.1.0

# By module and not by script: a script names the folder in which it was made, and a checkout may be moved.
RUN := $(VENV)/bin/python -m
# A module is compiled when it is first imported; three in four of those that come along never are.
PIP_INSTALL := $(RUN) pip --disable-pip-version-check install --quiet --no-compile
SAY = @printf '\n== %s\n'

.PHONY: help setup setup-dev demo test test-dicom test-slicer-5.11 lint types pytest slicer-files clean distclean

help:
	@sed -n '3,8s/^#   //p' Makefile

setup: $(VENV)/.stamp-package
setup-dev: $(VENV)/.stamp-dev

demo: setup
	@printf '\n== Demo: segmenting %s; results go to %s/\n' "$${CT:-a CT phantom}" "$$OUT"
	@$(RUN) SAM2AssistLib demo --out "$$OUT" $${CT:+--ct "$$CT"}

test: lint types pytest

lint: setup-dev
	$(SAY) 'Linter (ruff)'
	@$(RUN) ruff check .

types: setup-dev
	$(SAY) 'Type checker (mypy) over SAM2AssistLib'
	@$(RUN) mypy

# After a crash the rest goes to the other process: pytest-xdist 3.8 waits for ever for what it gives to a new one.
pytest: setup-dev
	$(SAY) 'Tests (pytest)'
	@OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen \
	  $(RUN) pytest -n $(WORKERS) --dist loadfile --max-worker-restart=0 $(PYTEST_ARGS)

# Those that need a program say so where it is absent, and are skipped.
test-dicom: setup-dev
	$(SAY) 'Tests of DICOM: files, dcmqi, dciodvfy and a PACS on the loopback interface'
	@for program in Orthanc dciodvfy; do \
	  PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || \
	    printf '%s is not installed, so its tests are skipped; get it with: sudo apt-get install orthanc orthanc-dicomweb dicom3tools\n' $$program; \
	done
	@$(RUN) pytest $(PYTEST_ARGS) Testing/Python/test_dicom_*.py Testing/Python/test_cli_export.py

# Its slicer-core lies in a folder of its own, in front of the other one, with the VTK that it finds beside itself.
test-slicer-5.11: setup-dev
	$(SAY) 'Tests of the Slicer module with the MRML of Slicer 5.11'
	@test -d $(VENV)/slicer-5.11 || \
	  $(PIP_INSTALL) --no-deps --target $(VENV)/slicer-5.11 'slicer-core==5.11.0.6' 'vtk==9.6.0'
	@QT_QPA_PLATFORM=offscreen PYTHONPATH=$(VENV)/slicer-5.11 $(RUN) pytest $(PYTEST_ARGS) \
	  Testing/Python/test_mrml_*.py Testing/Python/test_module_*.py Testing/Python/test_slicer_*.py \
	  Testing/Python/test_scripted_radiologist.py

# The lists of files from which Slicer's build installs SAM2AssistLib; a test fails when they are out of date.
slicer-files: setup-dev
	@$(VENV)/bin/python Testing/Python/slicer_package.py

# The first suitable interpreter: new enough and able to make environments.
$(VENV)/bin/python:
	$(SAY) 'Environment in $(VENV)'
	@found=; old=; \
	for python in python3 python3.12 python3.13 python3.11 python3.10; do \
	  command -v $$python >/dev/null || continue; \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { old=$$python; continue; }; \
	  found=$$python; \
	  $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  $$python -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	  exec $(VENV)/bin/python --version; \
	done; \
	if [ -n "$$found" ]; then \
	  echo "$$found cannot make environments; install that part of it:  sudo apt-get install python3-venv" >&2; \
	elif [ -n "$$old" ]; then \
	  echo "Python 3.10 or newer is needed and $$old is older; install a newer one, for example:" \
	    "sudo apt-get install python3.12 python3.12-venv" >&2; \
	else \
	  echo "Python is missing; install it:  sudo apt-get install python3 python3-venv" >&2; \
	fi; \
	exit 1

# The short timeout is for the CPU index only: where it cannot be reached, PyPI's build runs without a GPU just as well.
$(VENV)/.stamp-torch: | $(VENV)/bin/python
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  printf '\n== PyTorch %s with CUDA, because an NVIDIA driver was found (several GB)\n' $(TORCH_VERSION); \
	  $(PIP_INSTALL) torch==$(TORCH_VERSION); \
	else \
	  printf '\n== PyTorch %s for the CPU, because no NVIDIA driver was found (about 200 MB)\n' $(TORCH_VERSION); \
	  $(PIP_INSTALL) --timeout 20 --retries 1 --extra-index-url $(TORCH_CPU_INDEX) torch==$(TORCH_VERSION)+cpu || { \
	    printf '== The CPU build could not be had from %s; taking the standard build\n' $(TORCH_CPU_INDEX); \
	    $(PIP_INSTALL) torch==$(TORCH_VERSION); }; \
	fi
	@touch $@

$(VENV)/.stamp-sam2: $(VENV)/.stamp-torch
	$(SAY) 'SAM2 $(SAM2_VERSION), built against that PyTorch'
	@$(PIP_INSTALL) 'setuptools>=77' wheel numpy
	@SAM2_BUILD_CUDA=0 $(PIP_INSTALL) --no-build-isolation --no-deps sam2==$(SAM2_VERSION)
	@touch $@

# sam2 asks for torchvision and does not get it on purpose (pyproject.toml), so pip need not warn of that.
$(VENV)/.stamp-package: $(VENV)/.stamp-sam2 pyproject.toml
	$(SAY) 'SAM2Assist and what it needs'
	@$(PIP_INSTALL) --no-warn-conflicts --no-build-isolation -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-package
	$(SAY) 'What the tests need'
	@$(PIP_INSTALL) --no-warn-conflicts --no-build-isolation -e '.[dev,dicom,evaluate,train]'
	@touch $@

clean:
	rm -rf build dist *.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
