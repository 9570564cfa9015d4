# Two commands do all set-up on a fresh machine: `make quickstart` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest transformers that pyproject.toml allows, for what must hold from there to the newest.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1.0/p' pyproject.toml)
LLAVA := llava-torch==1.2.2.post1
# What a host asks of a tower and of us.
CONTRACTS := tests/hosts tests/encoder tests/teachers tests/alternatives tests/bootstrap/test_host_alignment.py tests/bootstrap/targets \
	tests/test_registration.py
# Tests run side by side, a core each.
PYTEST := -m pytest -n auto
TEACHER ?= clip-tiny
PHOTOS ?= scenes:6000
OUT ?= runs/quickstart
STEPS ?= 200
BESIDE := $(if $(filter clip-tiny,$(TEACHER)),sparseformer-tiny-49)

export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: setup integrations test reference oldest serve-test browser lint types check pages format docs docs-serve quickstart demo notebook hooks clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[train,eval,demo]" --group dev
	touch $@

# Every package that the README names and no extra installs. llava's own requirements are of 2024, so it comes without them.
integrations: $(VENV)/integrations

$(VENV)/integrations: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group integrations --group browser
	$(BIN)/python -m pip install --quiet --no-deps "$(LLAVA)"
	touch $@

test: setup
	$(BIN)/python $(PYTEST)

# The tests that compare with other projects' own code, and the long ones.
reference: integrations
	$(BIN)/python $(PYTEST) -m "(reference or slow) and not gpu and not network"

# What a host asks of us and we of it, under the oldest transformers.
oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python $(PYTEST) -m "not gpu and not network and not browser and not slow" $(CONTRACTS)

$(VENV)-oldest/installed: pyproject.toml
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-oldest/bin/python -m pip install --quiet --editable ".[train,eval,demo,quant,convert]" "transformers==$(OLDEST)" --group dev --group llava
	$(VENV)-oldest/bin/python -m pip install --quiet --no-deps "$(LLAVA)"
	touch $@

# What a serving engine says with our towers, in an environment of its own: vLLM pins torch and transformers.
serve-test: $(VENV)-serve/installed
	$(VENV)-serve/bin/python -m pytest -m serve tests/serve

# torchvision may be a build for CUDA there, which torch's CPU build cannot import: see tests/serve/torchvision_operators.py.
$(VENV)-serve/installed: pyproject.toml
	test -x $(VENV)-serve/bin/python || $(PYTHON) -m venv $(VENV)-serve
	$(VENV)-serve/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-serve/bin/python -m pip install --quiet --group serve
	$(VENV)-serve/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV)-serve/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VENV)-serve/bin/python -c "import torchvision" 2>/dev/null || { site=$$($(VENV)-serve/bin/python -c "import site; print(site.getsitepackages()[0])") \
		&& cp tests/serve/torchvision_operators.py "$$site" && echo "import torchvision_operators" > "$$site/torchvision_operators.pth"; }
	touch $@

# The demo and the report of `sfvlm make` in a headless Chromium: the one on the PATH, or CHROMIUM=/path/to/it.
browser: setup
	$(BIN)/python -m pip install --quiet --group browser
	$(BIN)/python -m pytest -m browser $(AGAIN) tests/demo/test_browser.py tests/make/test_page.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: setup
	$(BIN)/pyright

check: lint types test

# Fills the figures, tables and plots of the pages from the files in results/.
pages: setup
	$(BIN)/python scripts/build_pages.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages as a site, in site/; a warning fails. In an environment of its own, for it needs none of the package's.
docs: $(VENV)-docs/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict

# The same at http://127.0.0.1:8000, written anew whenever a page is saved.
docs-serve: $(VENV)-docs/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs serve

$(VENV)-docs/installed: pyproject.toml
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-docs/bin/python -m pip install --quiet --group docs
	touch $@

# Bootstraps a SparseFormer, measures it beside its teacher and the shipped, longer trained one, and draws where it looks.
# Interrupted, it continues.
# Own teacher and photos: make quickstart TEACHER=openai/clip-vit-base-patch16 PHOTOS=/data/photos
quickstart: setup
	$(BIN)/python scripts/bootstrap_clip.py --teacher "$(TEACHER)" --photos $(PHOTOS) --out $(OUT) --steps $(STEPS) --resume
	$(BIN)/python eval/zeroshot.py --model $(OUT) $(BESIDE) --data scenes:300:7 --out $(OUT)/zeroshot.json
	$(BIN)/sfvlm boxes --model $(OUT) --photo scenes:1:7 --out $(OUT)/boxes.png
	@echo
	@echo "Next, with your own photos, CLIP and LLaVA:"
	@echo "  $(BIN)/python scripts/bootstrap_clip.py --photos /your/photos --out runs/mine --steps 2000"
	@echo "  $(BIN)/python scripts/bootstrap_clip.py --teacher openai/clip-vit-large-patch14-336 --photos /your/photos --out runs/sf49 --steps 20000"
	@echo "  $(BIN)/python scripts/swap_llava_tower.py --host llava-hf/llava-1.5-7b-hf --tower runs/sf49 --out runs/llava-49"

# Opens the demo in a browser, offline once it is installed. Your own models: make demo DEMO="--host runs/llava-49"
demo: setup
	$(BIN)/python demo/app.py --browser $(DEMO)

# Opens the tour in Jupyter.
notebook: setup
	$(BIN)/python -m pip install --quiet --group notebook jupyterlab
	$(BIN)/jupyter lab notebooks/tour.ipynb

# Lint and types before every commit: .pre-commit-config.yaml.
hooks: setup
	$(BIN)/python -m pip install --quiet --group hooks
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-docs $(VENV)-serve runs site build dist .pytest_cache .ruff_cache
