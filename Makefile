# Every target installs what it needs (scripts/setup.sh) and may be run again at any time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint fmt bench release

# Handed to demo, bench and test: make demo ARGS=--once, make test ARGS='-E "package(api)"'
ARGS ?=
ENV := . .cache/env

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; do printf '  make %-8s %s\n' "$$target" "$$text"; done

demo: ## three hosts on this machine run nginx and redis and survive a kill (needs root; ARGS=--once ends by itself)
	@scripts/setup.sh
	@scripts/build.sh --release --bins -p cli -p testbed
	@$(ENV); exec $${CARGO_TARGET_DIR:-target}/release/testbed demo $(ARGS)

test: ## all tests and doc tests (needs root; ARGS are nextest's)
	@scripts/setup.sh test
	@scripts/test.sh $(ARGS)

lint: ## format, clippy, licences and bans, advisories, rustdoc
	@scripts/setup.sh lint
	@scripts/lint.sh

fmt: ## formats the sources
	@scripts/setup.sh
	@$(ENV); cargo fmt --all

bench: ## measures start, scale and failover times (needs root)
	@scripts/setup.sh
	@scripts/build.sh --release --bins -p cli -p testbed
	@$(ENV); exec $${CARGO_TARGET_DIR:-target}/release/testbed bench $(ARGS)

release: ## one static stripped binary: target/dist/skein
	@scripts/setup.sh
	@scripts/release.sh
