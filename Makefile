# `make test` makes its own environment (.venv) and runs everything that CI runs.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS := 1
export HF_HUB_OFFLINE := 1

.PHONY: test slow docs quality format clean

test: quality
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

slow: $(STAMP)
	$(VENV)/bin/python -m pytest -m slow

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

quality: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[train,evaluate,space,docs,test]" --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
