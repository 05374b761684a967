# One environment for everything; `make serve` and `make test` need nothing but python3.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install serve test check format lint typecheck clients bench gpu clean

install: $(VENV)/installed

# torch first and by its exact version, so that no other package chooses a build for us.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools -c constraints.txt
	$(BIN)/pip install --quiet "torch$$(sed -n 's/^torch==/==/p' constraints.txt)"
	$(BIN)/pip install --quiet -e ".[server,training,dev]" -c constraints.txt
	touch $@

serve: install
	$(BIN)/diffusiongpt serve $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

check: format-check lint typecheck test

.PHONY: format-check
format-check: install
	$(BIN)/ruff format --check .

lint: install
	$(BIN)/ruff check .

# Type checkers cannot follow the import hook of an editable install; a link shows them the way.
typecheck: install
	mkdir -p .typing && ln -sfn .. .typing/diffusiongpt
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Other people's clients, each where its versions are nobody else's, and the tests that run them.
CLIENTS := runs/clients
clients: install
	for list in tests/clients/*.txt; do \
	  $(BIN)/pip install --quiet --upgrade --target $(CLIENTS)/$$(basename $$list .txt) -r $$list || exit 1; \
	done
	if command -v npm > /dev/null; then \
	  mkdir -p $(CLIENTS)/node && cp tests/clients/package.json $(CLIENTS)/node && \
	  npm install --prefix $(CLIENTS)/node --no-audit --no-fund; \
	fi
	$(BIN)/python -m pytest -v tests/clients

bench: install
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# The tests and benchmarks that mean something on CUDA only, in ten minutes at most.
GPU_BENCHES := capture head forward single batch cache mixed
gpu: install
	$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("PyTorch sees no CUDA device")'
	timeout 600 sh -c '$(BIN)/python -m pytest -m gpu tests/engine || exit 1; \
	  for name in $(GPU_BENCHES); do \
	    $(BIN)/python benchmarks/bench_$$name.py --device cuda --repeats 1 || exit 1; \
	  done'

clean:
	rm -rf build .typing .mypy_cache .ruff_cache .hypothesis *.egg-info
