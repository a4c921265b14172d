# Every target sets up .venv by itself, from setup.cfg and constraints.txt, and only when one of them changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers

.PHONY: demo test test-fast test-gpu chaos lint docs digests bench gpu-check clean

demo: $(READY)
	@$(BIN)/inkstone demo

test: $(PEERS)
	@$(BIN)/pytest -n 2 --dist worksteal

# For contributors: no long training, no kill loops; under 90 seconds on two cores.
test-fast: $(READY)
	@$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# On a machine with a GPU. All other tests compute on the CPU, on every machine.
test-gpu: $(PEERS)
	@$(BIN)/pytest -m cuda

# Kill tokenize, refresh and continued training 200 times each; `make test` does 20 rounds of the first two.
chaos: $(READY)
	@$(BIN)/python -m tests.support.chaos

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(READY)
	@$(BIN)/python docs/cli_reference.py
	@$(BIN)/python docs/recipe_reference.py
	@$(BIN)/python docs/settings_reference.py

# After a change of code that decides bytes. Refuses if a stage makes other bytes under the same SCHEMA.
digests: $(READY)
	@$(BIN)/python -m tests.support.digests

bench: $(PEERS)
	@$(BIN)/inkstone bench

# At most 10 minutes on a GPU; docs/gpu.md says which file to send. Without a GPU: make gpu-check DEVICE=cpu
DEVICE ?= cuda
gpu-check: $(READY)
	@$(BIN)/inkstone bench gpu --device $(DEVICE)

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + \
	    "; name another one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "setting up .venv (once; torch is the large part)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $(READY)

# Other tools, which read what `export` writes in the tests, and are measured beside ours. litdata asks for torchvision,
# but reads tokens without it. One that was built for another torch (CUDA's beside the CPU's) makes transformers fail.
$(PEERS): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch $(PEERS)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
