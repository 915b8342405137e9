# `make txt2img PROMPT="a red apple"`, `make app` and `make test`: each makes what it needs first.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a red apple
ARGS ?=
WORKERS ?= 2

OLDEST := 3.10
comma := ,
CODE := sd scripts benchmarks tour examples tests docs/write_reference.py setup.py .ci/import_core.py

.PHONY: txt2img app test test-fast screenshots lint format clean

txt2img: $(VENV)/core
	@$(VENV)/bin/python scripts/txt2img.py --prompt="$$PROMPT_TEXT" $(ARGS)

app: $(VENV)/web
	@$(VENV)/bin/python scripts/app.py $(ARGS)

# WORKERS processes of one thread each take two thirds of the time. The web's tests start servers and browsers and wait
# for them, so they run alone.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore=tests/web
	$(VENV)/bin/python -m pytest tests/web

test-fast: $(VENV)/dev
	$(VENV)/bin/python -m pytest -m "not slow"

# The README's pictures of the page.
screenshots: $(VENV)/dev
	PYTHONPATH=. $(VENV)/bin/python tests/screenshots.py $(ARGS)

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/vermin --quiet --violations --target=$(OLDEST)- $(CODE)

format: $(VENV)/dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info

# Through the environment, so that quotes and dollars in a prompt reach the script as they are.
export PROMPT_TEXT := $(value PROMPT)
unexport PROMPT
MAKEOVERRIDES :=

# Without a pip that works it was interrupted while it was made: then it is made again.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < ($(subst .,$(comma),$(OLDEST))))' 2>/dev/null || { \
		echo 'Python $(OLDEST) or later is needed, and $(PYTHON) is older or missing:' \
			'name another one, as in "make $(MAKECMDGOALS) PYTHON=python3.12".' >&2; exit 2; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || \
		$(PYTHON) -m venv $$(test ! -f $(VENV)/pyvenv.cfg || echo --clear) $(VENV)
	@touch $@

$(VENV)/core: requirements.txt | $(VENV)/made
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/web: requirements-web.txt requirements.txt | $(VENV)/made
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-web.txt
	@touch $@ $(VENV)/core

# Two peers without what they ask for: of open_clip_torch the tests want the tokenizer file alone, and not torchvision.
$(VENV)/dev: $(wildcard requirements*.txt) | $(VENV)/made
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps open_clip_torch==3.3.0 lycoris-lora==4.1.3
	@touch $@ $(VENV)/core
