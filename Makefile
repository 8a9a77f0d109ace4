# Every chore, the same for a person and for CI. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGE := tfdeploy-serve
NBVAL := --nbval-lax --nbval-current-env -p no:cacheprovider -W "ignore:.*without encryption"

.PHONY: help install demo notebooks test test-all check format bench image clean

help:
	@echo "make demo      install, convert a trained model, print what was measured"
	@echo "make test      the tests, under 35 minutes on two cores"
	@echo "make test-all  the slow ones too"
	@echo "make check     format, lint, types, layers"
	@echo "make format    mend what check finds, where that can be done by itself"
	@echo "make notebooks run the tutorials and keep the outputs that tests compare"
	@echo "make bench     measure against what one would write by hand"
	@echo "make image     the Docker image of tfdeploy-serve; PLATFORM=linux/arm64 for another one than this machine's"
	@echo "make clean     remove what these made"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

demo: install
	@$(BIN)/python -m notebooks.run demo

notebooks: install
	$(BIN)/python -m notebooks.run refresh

# nbval runs in a pytest of its own: its cells share no fixture with the tests.
test: install
	$(BIN)/pytest -m "not slow"
	$(BIN)/pytest $(NBVAL) notebooks

test-all: install
	$(BIN)/pytest
	$(BIN)/pytest $(NBVAL) notebooks

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

# Another PYTHON_IMAGE is for machines that no registry reaches.
image: install
	rm -rf docker/dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir docker/dist .
	docker $(if $(PLATFORM),buildx build --load --platform $(PLATFORM),build) --tag $(IMAGE) \
		$(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) docker

clean:
	rm -rf $(VENV) docker/dist .demo .bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
