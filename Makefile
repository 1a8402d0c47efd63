# make demo   installs into .venv, then shows on real music what pre-training buys, and tags
#             an excerpt, or yours: DEMO="audio=song.mp3"
# make test   installs into .venv if need be, then runs the tests (make test-slow: the long ones);
#             TESTS="-x tests/models/test_maest.py" chooses and adds options, WORKERS=0 runs in one process
# make lint   style, types, spelling; make coverage: the tests, and what they do not run
# make docs   the guide as build/docs/index.html; make test-docs runs the commands of its pages
#             and of the README (TESTS="-k my-music": those of one page)
# make dist   a wheel and a source distribution, checked and tried in an empty environment
#
# make gpu    on a machine with a GPU: the tests and figures that need one, in 8 minutes at most,
#             by .venv or whatever Python has PyTorch and Lightning (GPU="--minutes 5 …": options)
#
# PYTHON=/path/to/python3.12 chooses the interpreter for .venv; DEMO="..." adds options to the demo.

VENV := .venv
BIN := $(VENV)/bin
#: the first of these that runs and is 3.11 or 3.12
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null && echo $$python && break; done)

#: the first of these that has PyTorch and Lightning
GPU_PYTHON ?= $(shell for python in $(BIN)/python python3 python; do \
	$$python -c 'import torch, pytorch_lightning' 2>/dev/null && echo $$python && break; done)

#: processes that tests run in, a file in one of them
WORKERS ?= 2

.PHONY: help install install-dev demo docs test test-docs test-slow coverage gpu lint format lock dist clean

help:
	@sed -n 's/^# //p' Makefile | head -n 11

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found: install one, or name it:" \
		"make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the requirements it stands for: a second call installs nothing.
# The lock has the versions of what they need in turn. It constrains and does not ask for anything:
# systems differ in what they need (CUDA's packages).
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	-c requirements.lock
# Its own requirement, PyAudio, is for loudspeakers, and needs a compiler and PortAudio's headers.
INSTALL_ALONE := $(INSTALL) --no-deps tinysoundfont

# The command $(BIN)/maest, which runs what this folder has
INSTALL_COMMAND := $(INSTALL) --no-deps --editable .

$(VENV)/.installed: requirements.txt requirements.lock pyproject.toml | $(BIN)/python
	$(INSTALL) -r requirements.txt
	$(INSTALL_ALONE)
	$(INSTALL_COMMAND)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements.txt requirements.lock pyproject.toml \
		| $(BIN)/python
	$(INSTALL) -r requirements-dev.txt
	$(INSTALL_ALONE)
	$(INSTALL_COMMAND)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: requirements-docs.txt requirements.lock $(VENV)/.installed
	$(INSTALL) -r requirements-docs.txt
	@touch $@

# After a change of a pin, in a new .venv of requirements-dev.txt, requirements-docs.txt and
# tinysoundfont alone
lock:
	$(BIN)/python -m pip freeze --all --exclude pip --exclude maest | sed 's/+.*//' > requirements.lock

demo: $(VENV)/.installed
	$(BIN)/python -m maest.experiments.demo $(DEMO)

# Warnings, such as a link to a page that is not there, are errors. All pages are read anew: a page that
# has not changed would not warn again.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going -b html docs build/docs
	@echo "The guide is build/docs/index.html"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

test-docs: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m docs -n $(WORKERS) --dist load --durations=5 tests/docs $(TESTS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600 $(TESTS)

coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term-missing:skip-covered $(TESTS)

gpu:
	@test -n "$(GPU_PYTHON)" || { echo "No Python here has PyTorch and Lightning: make install," \
		"or name one: make gpu GPU_PYTHON=/path/to/python"; exit 1; }
	timeout 600 $(GPU_PYTHON) benchmarks/gpu.py $(GPU)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .types && mkdir -p .types/maest
	ln -s $(addprefix ../../,$(wildcard maest/*.py) maest/command) \
		$(addprefix ../../,config datasets experiments helpers models) .types/maest
	$(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/codespell
	@! git grep -nIiEf .phrases -- ':!.phrases' ':!LICENSE' || { echo "Say it in plainer words" \
		"(.phrases lists what not to write)."; exit 1; }

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A wheel is built from the source distribution, installed with what it needs (gigabytes: PyTorch),
# and tags a song there, away from the checkout.
dist:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found: make PYTHON=... dist"; exit 1; }
	rm -rf dist build
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip install --disable-pip-version-check -q -r requirements-dist.txt
	build/tools/bin/pyproject-build --no-isolation --skip-dependency-check --outdir dist
	build/tools/bin/twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --disable-pip-version-check -q -c requirements.lock dist/*.whl
	cd build/empty && bin/maest --version && bin/maest tag ../../datasets/recordings/excerpt.ogg

clean:
	rm -rf $(VENV) .coverage .hypothesis .pytest_cache .ruff_cache .mypy_cache .types build dist *.egg-info
