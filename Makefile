PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.PHONY: demo evidence test lint clean

demo: $(VENV)/demo
	$(BIN)/python -m demo.run

evidence: $(VENV)/demo
	$(BIN)/python -m evidence.run
	$(BIN)/python -m evidence.report

test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder --max-worker-restart 1

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo $(VENV)/dev: pyproject.toml | $(BIN)/python
	$(INSTALL) '.[$(@F)]'
	touch $@

clean:
	rm -rf $(VENV) demo/output demo/report.html
