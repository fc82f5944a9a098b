# Paths are relative, so that a checkout in a directory with a space in its name works.
PYTHON ?= python3
RUN := .venv/bin/python
.DEFAULT_GOAL := help

.PHONY: help report report-full test slow thorough lint docs train prove mutants clean

help:
	@echo "make report       compare recipes on the small model, write reports/index.html"
	@echo "make test         the fast tests"
	@echo "make slow         the slow proofs"
	@echo "make thorough     the slow proofs of their relatives, which CI leaves out (under an hour)"
	@echo "make lint         ruff and pyright"
	@echo "make docs         the guide, docs/_build/index.html"
	@echo "make report-full  the report over all of the held-out text"
	@echo "make train        train the small model again (about half an hour)"
	@echo "make prove        every cast over all 2^32 float32 inputs, write reports/proof/ (an hour)"
	@echo "make mutants      which small changes of the numeric core the tests notice (an hour)"

report: .venv/installed
	$(RUN) -m lowprec compare --out reports
	@echo "open reports/index.html"

report-full: .venv/installed
	$(RUN) -m lowprec compare --preset full --out reports

test: .venv/installed
	$(RUN) -m pytest -q -n 2 -m "not slow"

slow: .venv/installed
	$(RUN) -m pytest -q -n 2 -m "slow and not thorough"

thorough: .venv/installed
	$(RUN) -m pytest -q -n 2 -m thorough

lint: .venv/installed-lint .venv/installed-train .venv/installed-mutants
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

# Every warning is an error; the examples run in tests/test_guide.py.
docs: .venv/installed-docs
	$(RUN) -m sphinx -n -W --keep-going -q docs docs/_build
	@echo "open docs/_build/index.html"

train: .venv/installed-train
	$(RUN) experiments/train_lm.py

prove: .venv/installed
	$(RUN) experiments/prove.py

mutants: .venv/installed-mutants
	$(RUN) experiments/mutants.py

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lowprec needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: pyproject.toml constraints.txt | .venv/created
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[report,test]"
	@touch $@

.venv/installed-lint .venv/installed-docs .venv/installed-train .venv/installed-mutants: .venv/installed-%: .venv/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

clean:
	rm -rf .venv
