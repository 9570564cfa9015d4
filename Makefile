# Two commands do all set-up on a fresh machine: `make quickstart` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEACHER ?=
PHOTOS ?= scenes:20000
OUT ?= runs/quickstart
STEPS ?= 400

export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: setup test lint types check format quickstart clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[train,eval]" --group dev
	touch $@

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

check: lint types test

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Bootstraps a SparseFormer from TEACHER on PHOTOS and measures it.
quickstart: setup
	@test -n "$(TEACHER)" || { echo "make quickstart needs a teacher: make quickstart TEACHER=timm:vit_tiny_patch16_224:/path/weights.safetensors PHOTOS=/path/photos"; exit 2; }
	$(BIN)/python scripts/bootstrap_clip.py --teacher "$(TEACHER)" --photos $(PHOTOS) --out $(OUT) --steps $(STEPS)

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache
