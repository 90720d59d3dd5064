# One target for one purpose; `make` alone lists them. Set-up is netns-lab/setup.sh, here as well.

export PATH := $(CURDIR)/.venv/bin:$(PATH)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

SCRIPTS := netns-lab/up netns-lab/setup.sh tests/run .ci/run
WITH_SETUP := source netns-lab/setup.sh

.PHONY: help setup test test-kernel semantics release debug fuzz bench bench-compare clean \
    verify verify-style verify-types verify-layers verify-cython verify-scripts

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 14

setup: ## install what is missing, make .venv, build both extensions (root, once)
	@$(WITH_SETUP); kp_need_root "make setup"; kp_setup tests

test: ## the tests that need neither root nor a kernel of their own
	@python -m pytest -m "not kernel and not ipvs and not sctp and not netem"

test-kernel: ## the tests that make network namespaces (root)
	@$(WITH_SETUP); kp_need_root "make test-kernel"; python -m pytest -m kernel

test-uml: ## the tests that need what many kernels lack (IPVS, SCTP, netem): there, or in user-mode Linux
	@python -m pytest -m "ipvs or sctp or netem"

verify: verify-style verify-types verify-layers verify-cython verify-scripts ## style, types, layers

verify-style:
	ruff check --quiet .
	ruff format --check --quiet .

verify-types:
	mypy

verify-layers:
	lint-imports --no-logo

verify-cython:
	cython-lint kproxy

verify-scripts:
	shellcheck --external-sources $(SCRIPTS)

semantics: ## docs/semantics.md from the scenarios' results (root)
	@$(WITH_SETUP); kp_need_root "make semantics"; mkdir -p build; \
	kproxy scenario run netns-lab/scenarios --mode all -o json --no-explain > build/semantics.json || true; \
	kproxy scenario semantics build/semantics.json > docs/semantics.md

release: ## build the extension beside its source, if it changed
	@$(WITH_SETUP); mkdir -p "$$KP_BUILD"; kp_extension release

debug: ## build the extension with bounds checks into build/debug, if it changed
	@$(WITH_SETUP); mkdir -p "$$KP_BUILD"; kp_extension debug

fuzz: ## the packet engine under a fuzzer with an address sanitizer for ten minutes (nightly)
	@KPROXY_FUZZ_SECONDS=$${KPROXY_FUZZ_SECONDS:-600} python -m pytest -o faulthandler_timeout=0 tests/fuzz

bench: release ## the figures of bench/README.md, kept by commit (root; hours; K=relay: some of them)
	@$(WITH_SETUP); kp_need_root "make bench"; python -m pytest bench --store build/bench $${K:+-k "$$K"}

bench-compare: ## what `make bench` found on two commits: A=COMMIT [B=COMMIT]
	@python -m bench.compare "$${A:?say make bench-compare A=COMMIT B=COMMIT}" $${B:+"$$B"}

clean: ## remove all that was built and cached; .venv and the figures in build/bench stay
	[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name bench -exec rm -rf {} +
	rm -rf kproxy/{,bench/}*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .import_linter_cache .benchmarks
	find kproxy tests bench -name __pycache__ -prune -exec rm -rf {} +
