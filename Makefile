# Two commands for a newcomer: `make demo` runs the main job on real data, `make test` passes the tests.
# Each does all of its own set-up in .venv, with plain pip; a second run installs nothing.

PYTHON ?= python3
BIN := .venv/bin

# Where PyTorch comes from:
#   auto        whatever pip is configured with; with no configuration, Linux and no NVIDIA GPU: PyTorch's CPU wheels,
#               which spare the gigabytes of CUDA packages that the ordinary Linux wheel brings
#   pip         always pip's own default (on Linux: the CUDA build)
#   https://..  this index beside pip's default, for example https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= auto
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test test-all lint types wheel peers clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	$(BIN)/constellation train

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slow and not gpu'

test-all: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

lint: .venv/.installed-dev
	$(BIN)/ruff check .

types: .venv/.installed-dev
	$(BIN)/mypy

wheel: .venv/.installed
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

# The packages that `constellation benchmark throughput` measures beside ours, each in an environment of its own.
peers: .venv/bin/python
	$(BIN)/python benchmarks/peers/install.py

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache

.venv/.installed: .venv/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[datasets]'
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[datasets,dev]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed; %s is %s. Choose another: make PYTHON=python3.12 ..." % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv .venv

# PyTorch goes first and alone, because it is the one package whose origin depends on the machine.
# The CPU index is asked with a short patience; where it cannot be reached, pip's default is used.
.venv/.torch: constraints.txt | .venv/bin/python
	@set -e; torch=$$(grep '^torch==' constraints.txt); index='$(TORCH_INDEX)'; \
	if [ "$$index" = pip ]; then index=; fi; \
	if [ "$$index" = auto ]; then \
	  index=; \
	  if [ "$$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1 \
	     && ! $(BIN)/python -m pip config list | grep -E 'index-url|find-links|no-index' >/dev/null; then \
	    if $(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' \
	       $(TORCH_CPU_INDEX)/torch/ >/dev/null 2>&1; then index=$(TORCH_CPU_INDEX); \
	    else echo "PyTorch's CPU index did not answer; taking pip's default build."; fi; \
	  fi; \
	fi; \
	echo "Installing $$torch $${index:+from $$index}"; \
	$(BIN)/python -m pip install -q -c constraints.txt "$$torch" $${index:+--extra-index-url "$$index"}
	@touch $@
