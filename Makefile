# `make` or `make help` lists what can be done. Everything happens in .venv beside this file.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# More than one thread a worker makes small models slower, not faster.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Tests of a group share what a fixture has trained, so they stay on one worker.
TWO := -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help install demo test kernel coverage benchmarks check lint types contracts dependencies spelling docs architecture
.PHONY: audit format clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1|\2/' | \
		while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

install: $(STAMP)  ## Make .venv and install curricle with everything needed to work on it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "curricle needs Python 3.11 or later; '$(PYTHON)' is missing or older." \
			"Name another one with: make PYTHON=python3.12" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv || { \
		echo "'$(PYTHON)' cannot make a virtual environment." \
			"On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hf,dev]'
	@touch $@

demo: install  ## Run the demonstration on the sample data
	$(BIN)/curricle demo

test: install  ## Run the tests on two cores
	$(PYTEST) $(TWO)

# The release that torch of constraints.txt requires where it is built for CUDA, in a folder of its
# own: the compiler of torch imports triton wherever it is installed.
TRITON := .venv/triton-3.7.1

$(TRITON): | $(STAMP)
	rm -rf $@.part
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@.part \
		$(subst .venv/triton-,triton==,$@)
	@mv $@.part $@

kernel: install $(TRITON)  ## Run the tests of the kernel in triton on a CPU, by its interpreter (Linux)
	PYTHONPATH=$(TRITON)$${PYTHONPATH:+:$$PYTHONPATH} TRITON_INTERPRET=1 $(PYTEST) -n 0 \
		tests/unit/objectives/test_fused_kernels.py tests/integration/test_fused_losses.py

coverage: install  ## Run the tests and check how many lines and branches they reach, in twice the time
	$(PYTEST) $(TWO) --cov=curricle --cov=curricle_papers

# The tables of docs/theory.md take minutes and time nothing; encoders are what others run.
QUIET := benchmarks/theorem_tables.py benchmarks/encoders.py
QUICK := $(filter-out $(QUIET),$(wildcard benchmarks/*.py)) benchmarks/peers/steps.py

benchmarks: install  ## Run every benchmark in small, only to see that it runs
	@set -e; for each in $(QUICK); do \
		echo "== $$each"; OMP_NUM_THREADS=1 $(BIN)/python $$each --quick; done

check: lint types contracts dependencies spelling test  ## Run everything that must pass before a commit

lint: install  ## Check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install  ## Check types
	$(BIN)/mypy

contracts: install  ## Check who imports whom
	$(BIN)/lint-imports

dependencies: install  ## Check that what is imported is declared, and the reverse
	$(BIN)/deptry .

spelling: install  ## Check spelling
	$(BIN)/codespell

# In an environment of its own: what the auditor needs must not move the versions that are tested.
audit:  ## Look the versions of constraints.txt up among known vulnerabilities; needs the network
	@[ -x .venv-audit/bin/pip-audit ] || { $(PYTHON) -m venv .venv-audit && \
		.venv-audit/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3'; }
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

docs: install  ## Make pages of docs/ from the source, and files for coding agents from the pages
	$(BIN)/python -m curricle.runs.reference spec > docs/spec.md
	$(BIN)/python -m curricle.runs.reference records > docs/records.md
	$(BIN)/python -m curricle.runs.api_reference > docs/api.md
	$(BIN)/python tools/agent_files.py

architecture: install  ## Make docs/images/architecture.svg from the imports
	$(BIN)/python tools/architecture.py

format: install  ## Format the code and mend what can be mended automatically
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove .venv, caches and build products; run folders stay
	rm -rf .venv .venv-audit dist .coverage htmlcov .benchmarks
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
