# Two commands for a newcomer: `make demo` and `make test`. Both build .venv first; set PYTHON to choose the interpreter.
# `make extras` adds PyTorch and timm, for .pth files and the tests that compare with them, and the compiler of TPUs.
PYTHON ?= python3
PY := .venv/bin/python
# A file of tests stays in one process: what its tests share is made once.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
OUTPUT ?= $(if $(VIDEOS),demo_videos,demo)

.PHONY: demo install extras test test-all lint clean

# VIDEOS: a folder of your own. OUTPUT: where everything goes; another folder for other videos.
demo: .venv/.installed
	$(PY) -m launch.demo --output="$(OUTPUT)" $(if $(VIDEOS),--videos="$(VIDEOS)")

install: .venv/.installed

extras: .venv/.extras

test: .venv/.installed
	$(PY) -m pytest $(PARALLEL) -m "not slow"

test-all: .venv/.installed
	$(PY) -m pytest $(PARALLEL)

lint: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/.extras: .venv/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,torch,timm,plan]'
	touch $@

clean:
	rm -rf .venv demo demo_videos
