# Everything happens in $(VENV); a stamp file remembers that the set-up is done.
#   make demo        set up and run the built-in demonstration
#   make test        set up with the development tools; lint, types, layers, tests in JOBS processes
#   make test-slow   the tests that take longer
#   make test-torch TORCH=torch==2.12.1   the tests with that PyTorch, in an environment of its own
#   make test-newest  demo, test and docs with the newest tools of the day, in an environment of its own
#   make docs        the documentation site, into build/site, with warnings as errors
#   make constraints  raise the versions in constraints-dev.txt to the newest of the day
#   make fuzz        random input for the native core, under sanitizers, for SECONDS=60
#   make fuzz-programs   random training programs against plain PyTorch, for SECONDS or PROGRAMS=5000
#   make bench       a part of each benchmark, in under 30 minutes; rewrites docs/benchmarks
#   make bench-full  all benchmarks whole, for hours
#   make zoo         public architectures trained plainly and within a budget, in an environment of its own
#   make clean       remove what was built
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Exact versions of all that is installed beside PyTorch; empty: the newest.
CONSTRAINTS ?= constraints-dev.txt
SECONDS ?= 60
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SEED ?= $(shell date +%s)

BIN := $(VENV)/bin
# Files are handed out by name: the last ones are short, so that none keeps one process waiting.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) \
	--dist loadfile --no-loadscope-reorder
# By environment variables, for these reach the isolated builds too: the first until pip 25.2, the second from 25.3.
PIP = PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) \
	$(BIN)/python -m pip --disable-pip-version-check --quiet
UV = build/constraints/bin/uv pip compile --quiet
CMAKE = $(or $(wildcard $(BIN)/cmake),cmake)
NATIVE := pyproject.toml CMakeLists.txt Makefile $(wildcard native/*.cpp native/src/*.cpp native/src/*.hpp)

# An editable install knows the modules that were there when it was made.
MODULES := $(VENV)/.modules
$(shell mkdir -p $(VENV); find src -name '*.py' | sort > $(MODULES).new; \
	cmp -s $(MODULES).new $(MODULES) || cp $(MODULES).new $(MODULES))

.PHONY: demo test test-slow test-torch test-newest pytest docs constraints fuzz fuzz-programs
.PHONY: bench bench-full zoo zoo-run clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-demo
	$(BIN)/memfit demo

test: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports
	$(PYTEST)

test-slow: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m slow

test-torch:
	$(MAKE) VENV=.venv-$(subst ==,-,$(TORCH)) pytest

test-newest:
	rm -rf .venv-newest
	$(MAKE) VENV=.venv-newest CONSTRAINTS= demo docs test

pytest: $(VENV)/.stamp-dev
	$(PYTEST)

docs: $(VENV)/.stamp-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html, or run $(BIN)/python -m mkdocs serve"

# PyTorch is chosen by TORCH; its releases differ in the setuptools that they take. The zoo's packages have their
# versions in pyproject.toml.
EXTRAS = $(addprefix --extra ,docs ilp lightning plot transformers dev)
constraints:
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip --disable-pip-version-check --quiet install uv
	printf 'torch\ntorchvision\nsetuptools\n' > build/constraints/excluded.txt
	$(UV) pyproject.toml .ci/constraints.in $(EXTRAS) --universal --python-version 3.11 \
		--excludes build/constraints/excluded.txt --upgrade --no-annotate \
		--custom-compile-command 'make constraints' --output-file constraints-dev.txt

fuzz:
	$(CMAKE) -S native/fuzz -B build/fuzz
	$(CMAKE) --build build/fuzz --parallel
	build/fuzz/fuzz --seconds $(SECONDS) --seed $(SEED)

fuzz-programs: $(VENV)/.stamp-dev
	PYTHONPATH=tests $(BIN)/python -m programs --jobs $(JOBS) --seed $(SEED) \
		$(if $(PROGRAMS),--programs $(PROGRAMS),--seconds $(SECONDS))

bench: $(VENV)/.stamp-dev
	$(BIN)/python -m benchmarks --quick

bench-full: $(VENV)/.stamp-dev
	$(BIN)/python -m benchmarks --full

# Goes on where it was stopped; ZOO='language gpt2' runs these groups and architectures anew.
zoo:
	$(MAKE) VENV=.venv-zoo zoo-run

zoo-run: $(VENV)/.stamp-zoo
	$(BIN)/python -m benchmarks.zoo $(or $(ZOO),--resume)

# torch comes first and by its exact version, so that no later step picks another one.
$(VENV)/.stamp-torch: Makefile $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "memfit needs Python 3.11 to 3.13, $(PYTHON) is %d.%d; run make PYTHON=python3.11" % v[:2])'
	@echo "Setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-torch $(NATIVE) $(MODULES)
	$(PIP) install $(TORCH) -e '.[plot]'
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-torch $(NATIVE) $(MODULES)
	$(PIP) install $(TORCH) -e '.[dev,plot]'
	$(PIP) install --no-deps pytorchcv
	@touch $@ $(VENV)/.stamp-demo

# Without dependencies, so that nothing replaces PyTorch or adds a torchvision that would.
$(VENV)/.stamp-zoo: $(VENV)/.stamp-torch $(NATIVE) $(MODULES)
	$(PIP) install $(TORCH) -e .
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["zoo"], sep="\n")' > $(VENV)/zoo.txt
	PIP_CONSTRAINT= $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps -r $(VENV)/zoo.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
