# Two commands: `make txt2img PROMPT="a red apple"` and `make test`. Both make what they need first.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a red apple
ARGS ?=

.PHONY: txt2img test test-fast lint format clean

txt2img: $(VENV)/core
	@$(VENV)/bin/python scripts/txt2img.py --prompt "$$PROMPT_TEXT" $(ARGS)

test: $(VENV)/dev
	$(VENV)/bin/python -m pytest

test-fast: $(VENV)/dev
	$(VENV)/bin/python -m pytest -m "not slow"

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache

# Through the environment, so that quotes and dollars in a prompt reach the script as they are.
export PROMPT_TEXT := $(value PROMPT)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# Two peers without what they ask for: of open_clip_torch the tests want the tokenizer file alone, and not torchvision.
$(VENV)/dev: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps open_clip_torch==3.3.0 lycoris-lora==4.1.3
	@touch $@ $(VENV)/core
