# Every target sets up its own .venv on a fresh checkout; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

STUDIES := $(addprefix digits_,methods vicreg_ctr figure_1 normalization similarity batch_size epochs) \
  $(addprefix fashion_mnist_,methods figure_1 batch_size)
BENCHMARKS := criteria growth kernels augmentation optimizers training startup threads folders

.PHONY: help demo figure-1 studies test test-slow mutants lint fit bench clean
.DEFAULT_GOAL := help

help:  ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: .venv/installed  ## pretrain VICReg on the embedded digits, evaluate it, say what to look at
	duality-ssl fit -c configs/data/digits.yaml --model VICReg --experiment demo
	duality-ssl test --model VICReg --experiment demo --ckpt_path last
	@echo
	@echo "The run is the newest one in runs/demo/VICReg: config.yaml, metrics.csv, checkpoints/."
	@echo "Curves, the views and the probe:  .venv/bin/tensorboard --logdir runs"
	@echo "Another criterion, all else equal:  make fit ARGS='-c configs/data/digits.yaml --model SimCLR'"

figure-1: .venv/installed  ## pretrain and evaluate the smallest figure 1 of the paper, write a report of it
	duality-ssl sweep configs/sweeps/figure_1_small.yaml --jobs 2
	duality-ssl report runs/sweeps/figure_1_small/rows.jsonl

studies: .venv/installed  ## run what docs/results.md and docs/results/studies.md show, and redraw them (JOBS=2 at once)
	for name in $(STUDIES); do \
	  duality-ssl sweep configs/sweeps/$$name.yaml --jobs $(or $(JOBS),2) \
	    --rows docs/results/studies/$$name.jsonl $(ARGS) || exit 1; \
	done
	python benchmarks/studies.py --pixels

test: .venv/developed  ## run all tests but those marked slow; plain pytest runs both (ARGS=... goes to pytest)
	pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: .venv/developed  ## run the tests marked slow: launchers, lost processes, KILLS=25 random kills, benchmarks, notebooks
	DUALITY_SSL_KILLS=$(or $(KILLS),25) pytest -n 2 --dist loadfile -m slow $(ARGS)

mutants: .venv/developed  ## break the code in small ways, one at a time: tests must notice 95 %
	python tests/mutants.py $(ARGS)

lint: .venv/developed  ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

fit: .venv/installed  ## duality-ssl fit with ARGS='-c configs/data/digits.yaml --model SimCLR'
	duality-ssl fit $(ARGS)

bench: .venv/benched  ## run the benchmarks of docs/benchmarks.md again and rewrite its tables and plots
	for name in $(BENCHMARKS); do echo "== $$name" && python benchmarks/$$name.py $(ARGS) || exit 1; done
	python benchmarks/render.py

clean:  ## remove the environment, caches and build products, never runs/
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/created:
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/installed: pyproject.toml | .venv/created
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv/benched: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@
