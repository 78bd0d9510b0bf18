PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test zoo coverage coverage-timm coverage-libraries bench clean

# One virtual environment for everything, made once and again when the dependencies change.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,test,runtimes]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/fxprune demo

test: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

zoo: $(VENV)/ready
	$(BIN)/python -m pytest -m zoo

# Hours: every model of torchvision, one of each architecture of timm, and transformers; goes on where it was broken off.
coverage: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[zoo]'
	$(BIN)/python -m tests.zoo.run --out runs/coverage.jsonl --table docs/coverage.md

# Most of a day: every model of timm, neither inspected nor exported; goes on where it was broken off.
coverage-timm: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[zoo]'
	$(BIN)/python -m tests.zoo.run --family timm-all --jobs 1 --timeout 900 --memory 20 \
		--out docs/coverage_timm.jsonl --table docs/coverage_timm.md

# Models of other libraries, which bring many dependencies.
coverage-libraries: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[zoo,libraries]'
	$(BIN)/python -m tests.zoo.run --family libraries --out runs/coverage_libraries.jsonl \
		--table docs/coverage_libraries.md

bench: $(VENV)/ready
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/threshold.py
	$(BIN)/python benchmarks/resnet50.py

clean:
	rm -rf $(VENV) build dist runs *.egg-info
