# Everything a user or CI does, one word each. `make demo` and `make test` are all the set-up.

PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: demo test check format test-real conformance bench picture clean

demo: $(READY)  ## Fetch the default pair and decode three prompts with and without SSD.
	$(RUN)/safedraft pull
	$(RUN)/python examples/demo.py

test: $(READY)  ## The fast tests: no download, under two minutes.
	$(RUN)/python -m pytest

check: $(READY)  ## What CI checks before any test.
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

format: $(READY)
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

test-real: $(READY)  ## Tests on the default pair.
	$(RUN)/safedraft pull
	$(RUN)/python -m pytest -m real --timeout 1200

bench: $(READY)  ## SSD against Transformers' own generation.
	$(RUN)/safedraft pull
	$(RUN)/safedraft bench
	$(RUN)/python benchmarks/growth.py

picture: $(READY)  ## Draw the README's picture from a real run.
	$(RUN)/python examples/demo.py --svg docs/demo.svg

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Exact versions from constraints.txt; on Linux the CPU build of torch is enough for everything here.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('SafeDraft needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …')"
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,eval]'
	touch $@
