# kserve. `make help` lists what there is; every target makes what it needs first, from a fresh checkout on.

PORT ?= 8080
DATA ?= data
PROFILES ?=
SECONDS ?= 60
MODE = release

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input install --no-build-isolation
COMPILED := $(wildcard kserve/*.pyx kserve/*.pxd kserve/*.h)
PACKAGE := $(COMPILED) $(shell find kserve -name '*.py' -o -name '*.pyi' -o -name py.typed -o -name '*.lua' -o -path '*/templates/*')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.NOTPARALLEL:
.PHONY: drill faults fuzz help run build test lint bench asan debug clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  PORT=8080  ADMIN_PORT=8081 (run)  DATA=data  PROFILES=1000000 (run), 10000000 (bench)  MODE=release|debug|coverage (build, run)'
	@echo '  SECONDS=60 (fuzz)'

run: build ## synthetic profiles, two daily snapshots, and their scores on 127.0.0.1:PORT
	@exec $(BIN)/kserve demo --serve --port '$(PORT)' --profiles '$(or $(PROFILES),1000000)' --data '$(DATA)' \
		$(if $(ADMIN_PORT),--admin-port '$(ADMIN_PORT)')

build: build/.inplace ## the package in .venv, its extensions compiled in place

# On all cores; tests of one file share servers, and so a process.
PARALLEL = -n auto --dist loadfile

test: build .venv/.deps-test ## all tests
	@command -v strace >/dev/null || scripts/apt strace
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest -m '' $(PARALLEL)

drill: build .venv/.deps-test ## the incidents of 2011 and others, replayed, each with a time line
	DRILLS=all PYTHONSAFEPATH=1 $(BIN)/python -m pytest -m drill -q -rN --capture=no

faults: build .venv/.deps-test ## every system call of a publish, killed and failed in every way
	@command -v strace >/dev/null || scripts/apt strace
	FAULTS=all PYTHONSAFEPATH=1 $(BIN)/python -m pytest -m '' tests/core/test_faults.py tests/cli/test_kill.py

lint: build .venv/.deps-lint .venv/.deps-test ## ruff, mypy, stubtest, cython-lint, import contracts
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml $(patsubst kserve/%.pyi,kserve.%,$(wildcard kserve/_*.pyi))
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(wildcard kserve/*.pyx kserve/*.pxd)
	$(BIN)/lint-imports --no-cache

bench: build .venv/.deps-bench ## the figures of the README, peers side by side (PROFILES=75000000: full size)
	@command -v redis-server wrk nginx >/dev/null || scripts/apt redis-server wrk nginx libnginx-mod-http-lua
	PROFILES='$(or $(PROFILES),10000000)' $(BIN)/python -m bench

# debug and asan run the suite against a copy installed below build/, so that the tree keeps its release objects.
IN_SITE = PYTHONSAFEPATH=1 PYTHONPATH='$(CURDIR)/build/$@/site' $(SANITIZER) $(BIN)/python
FROM_SITE = import kserve, sys; sys.exit("/build/$@/site/" not in kserve.__file__ and kserve.__file__)

debug: build/debug/.site .venv/.deps-test ## the suite with bounds checks on
	@$(IN_SITE) -c '$(FROM_SITE)'
	$(IN_SITE) -m pytest $(PARALLEL)

# libstdc++ is preloaded too: without it ASan cannot wrap the exceptions of C++ libraries that are loaded later.
# Leaks are not looked for: the interpreter frees little at exit. ASan reports to files, so that those of servers that
# tests start are seen too; UBSan only to stderr, which pytest must therefore leave alone.
REPORT = $(CURDIR)/build/asan/report
asan: SANITIZER = PYTHONMALLOC=malloc \
  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS='detect_leaks=0:abort_on_error=1:handle_sigbus=0:allocator_may_return_null=1:log_path=$(REPORT)' \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
asan: build/asan/.site .venv/.deps-test ## the suite under AddressSanitizer and UBSan
	@rm -f '$(REPORT)'.*
	@$(IN_SITE) -c '$(FROM_SITE)'
	$(IN_SITE) -m pytest $(PARALLEL) -o timeout=600 --capture=sys; status=$$?; cat '$(REPORT)'.* 2>/dev/null && exit 1; exit $$status

# Compiled by clang, so that libFuzzer, which comes with atheris, sees which branches are taken. What it finds, and the
# inputs that it has learned from, stay in build/fuzz/found.
build/fuzz/.site: export CC = clang
build/fuzz/.site: .venv/.clang
.venv/.clang: .venv/.made
	@command -v clang >/dev/null || scripts/apt clang
	@touch $@

fuzz: SANITIZER = LD_PRELOAD="$$($(BIN)/python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so" \
  ASAN_OPTIONS='detect_leaks=0:abort_on_error=1:handle_sigbus=0:allocator_may_return_null=1'
fuzz: build/fuzz/.site .venv/.deps-test .venv/.deps-fuzz ## mutated requests, answered by the compiled path and by aiohttp
	@$(IN_SITE) -c '$(FROM_SITE)'
	PYTHONSAFEPATH=1 PYTHONPATH='$(CURDIR)/build/$@/site:$(CURDIR)/tests' $(SANITIZER) \
	  $(BIN)/python tests/fuzz/fuzz_wire.py build/fuzz/found -max_total_time=$(SECONDS) -print_final_stats=1

clean: ## remove all that these targets made, except DATA
	rm -rf .venv build kserve_scores.egg-info kserve/*.so .benchmarks .hypothesis .import_linter_cache \
	  .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# How things are made. A stamp file stands for each step that leaves no one file of its own.

.venv/.made: scripts/make-venv
	@echo 'making .venv'
	@scripts/make-venv .venv
	@touch $@

BUILD_REQUIRES = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])
.venv/.build: .venv/.made pyproject.toml
	@$(PIP) $$($(BIN)/python -c '$(BUILD_REQUIRES)')
	@touch $@

.venv/.deps: .venv/.build
	@echo 'installing what kserve needs'
	@KSERVE_BUILD=none $(PIP) --editable .
	@touch $@

.venv/.deps-%: .venv/.deps
	@echo 'installing what make $* needs'
	@KSERVE_BUILD=none $(PIP) --editable '.[$*]'
	@touch $@

build/.mode: FORCE
	@mkdir -p build
	@echo '$(MODE)' | cmp -s - $@ || echo '$(MODE)' >$@

build/.inplace: build/.mode .venv/.deps setup.py $(COMPILED)
	@echo 'compiling ($(MODE))'
	@KSERVE_BUILD=$(MODE) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# Without the deletion, modules that are gone from the tree would stay in setuptools' copy.
build/%/.site: .venv/.deps setup.py $(PACKAGE)
	@echo 'compiling ($*)'
	@mkdir -p build/$*
	@find build/$* -name '*.py' -delete
	@rm -rf build/$*/site
	@KSERVE_BUILD=$* $(PIP) --no-deps --target build/$*/site .
	@touch $@
