# kserve. `make help` lists what there is; every target makes what it needs first, from a fresh checkout on.

PORT ?= 8080
DATA ?= data
PROFILES ?=
MODE = release
MODES := release debug asan coverage

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input install --no-build-isolation
COMPILED := $(wildcard kserve/*.pyx kserve/*.pxd kserve/*.h)
PACKAGE := $(COMPILED) $(shell find kserve -name '*.py' -o -name '*.pyi' -o -name py.typed)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.NOTPARALLEL:
.PHONY: help run build test lint bench asan debug clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  PORT=8080  DATA=data  PROFILES=1000000 (run), 10000000 (bench)  MODE=release|debug|coverage (build, run)'

run: build ## synthetic profiles, two daily snapshots, and their scores on 127.0.0.1:PORT
	@exec $(BIN)/kserve demo --serve --port '$(PORT)' --profiles '$(or $(PROFILES),1000000)' --data '$(DATA)'

build: build/.inplace ## the package in .venv, its extensions compiled in place

test: build .venv/.deps-test ## all tests, the heavy ones last
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest -m ''

lint: build .venv/.deps-lint .venv/.deps-test ## ruff, mypy, stubtest, cython-lint, import contracts
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest $(patsubst kserve/%.pyx,kserve.%,$(wildcard kserve/_*.pyx))
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(wildcard kserve/*.pyx kserve/*.pxd)
	$(BIN)/lint-imports --no-cache

bench: build .venv/.deps-bench ## the figures of the README, peers side by side (PROFILES=75000000: full size)
	@command -v redis-server >/dev/null || scripts/apt redis-server
	PROFILES='$(or $(PROFILES),10000000)' $(BIN)/python -m bench

# debug and asan run the suite against a copy installed below build/, so that the tree keeps its release objects.
IN_SITE = PYTHONSAFEPATH=1 PYTHONPATH='$(CURDIR)/build/$@/site' $(SANITIZER) $(BIN)/python
define SUITE
@$(IN_SITE) -c 'import kserve, sys; sys.exit("/build/$@/site/" not in kserve.__file__ and kserve.__file__)'
$(IN_SITE) -m pytest -o timeout=600
endef

debug: build/debug/.site .venv/.deps-test ## the suite with bounds checks on
	$(SUITE)

# libstdc++ is preloaded too: without it ASan cannot wrap the exceptions of C++ libraries that are loaded later.
# Leaks are not looked for: the interpreter frees little at exit.
asan: SANITIZER = PYTHONMALLOC=malloc LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
asan: build/asan/.site .venv/.deps-test ## the suite under AddressSanitizer and UBSan
	$(SUITE)

clean: ## remove all that these targets made, except DATA
	rm -rf .venv build kserve_scores.egg-info kserve/*.so .benchmarks .hypothesis .import_linter_cache \
	  .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# How things are made. A stamp file stands for each step that leaves no one file of its own.

.venv/.made: scripts/make-venv
	@echo 'making .venv'
	@scripts/make-venv .venv
	@touch $@

.venv/.build: .venv/.made pyproject.toml
	@$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@touch $@

.venv/.deps: .venv/.build
	@echo 'installing what kserve needs'
	@KSERVE_BUILD=none $(PIP) --editable .
	@touch $@

.venv/.deps-%: .venv/.deps
	@echo 'installing what make $* needs'
	@KSERVE_BUILD=none $(PIP) --editable '.[$*]'
	@touch $@

# Cython does not notice that its directives have changed: begin anew.
$(MODES:%=build/%/.begun): build/%/.begun: setup.py | .venv/.build
	@rm -rf build/$*
	@mkdir -p build/$*
	@touch $@

build/.mode: FORCE
	@mkdir -p build
	@echo '$(MODE)' | cmp -s - $@ || echo '$(MODE)' >$@

build/.inplace: build/$(MODE)/.begun build/.mode .venv/.deps $(COMPILED)
	@echo 'compiling ($(MODE))'
	@KSERVE_BUILD=$(MODE) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# Without the deletion, modules that are gone from the tree would stay in setuptools' copy.
build/%/.site: build/%/.begun .venv/.deps $(PACKAGE)
	@echo 'compiling ($*)'
	@find build/$* -name '*.py' -delete
	@rm -rf build/$*/site
	@KSERVE_BUILD=$* $(PIP) --no-deps --target build/$*/site .
	@touch $@
