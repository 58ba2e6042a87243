# Every target installs what it needs (scripts/setup.sh) and may be run again at any time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint fmt bench bench-store release sim sim-long sim-planted sim-speed chaos-store fuzz leaks

# Handed to demo, bench and test: make demo ARGS=--once, make test ARGS='-E "package(api)"'
ARGS ?=
# Handed to sim. (SECONDS itself is bash's.)
SEEDS ?= 100
FROM ?= 1000
SECONDS_EACH ?= 60
# Handed to sim-long: real ones.
HOURS ?= 1
# Handed to chaos-store and fuzz.
SECONDS ?= 60
SEED ?=
HOSTS ?= 3
VOTERS ?=
TARGET ?=
# Handed to leaks.
PODS ?= 200
ENV := . .cache/env
# Measures what `make release` makes.
define BENCH
@scripts/release.sh
@scripts/build.sh --release --bins -p testbed
@$(ENV); SKEIN_BIN=$$PWD/target/dist/skein exec $${CARGO_TARGET_DIR:-target}/release/testbed bench
endef
SIM := cargo test --locked --release -p raft-store --test sim -- --ignored --nocapture

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done

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

bench: ## measures start, scale and failover times of what `make release` makes (needs root)
	@scripts/setup.sh
	$(BENCH) $(ARGS)

bench-store: ## the store beside Debian's etcd, same disk, syncs and TLS (needs root; ARGS: writes reads local memory kills restart observers ours, and numbers of clients; SKEIN_OTHER=PATH: beside another build of skein instead)
	@scripts/setup.sh bench
	$(BENCH) store $(ARGS)

sim: ## whole clusters of replicas on one thread, by seed: SEEDS=100 FROM=1000 SECONDS_EACH=60 (virtual ones)
	@scripts/setup.sh test
	@$(ENV); SKEIN_SIM_SEEDS=$(SEEDS) SKEIN_SIM_FROM=$(FROM) SKEIN_SIM_SECONDS=$(SECONDS_EACH) $(SIM) as_many_seeds

sim-long: ## fresh seeds for so many whole hours, or until one fails: HOURS=1
	@scripts/setup.sh test
	@$(ENV); SKEIN_SIM_HOURS=$(HOURS) $(SIM) for_hours

sim-speed: ## how many times faster than real time the simulator is
	@scripts/setup.sh test
	@$(ENV); $(SIM) how_fast_it_is

sim-planted: ## the simulator finds every bug that was planted for it
	@scripts/setup.sh test
	@$(ENV); cargo test --locked --workspace --features raft-store/planted-bugs --test sim -- --nocapture --test-threads=2 planted

chaos-store: ## the store on real agents that are killed, paused and cut off, judged: SECONDS=60 HOSTS=3 VOTERS=… SEED=… (needs root)
	@scripts/setup.sh
	@scripts/build.sh --release --bins -p cli -p testbed
	@$(ENV); exec $${CARGO_TARGET_DIR:-target}/release/testbed chaos-store --seconds $(SECONDS) --hosts $(HOSTS) $(if $(VOTERS),--voters $(VOTERS)) $(if $(SEED),--seed $(SEED))

fuzz: ## every decoder against changed bytes, on two cores: SECONDS=60 (of all together) TARGET=… SEED=…
	@scripts/setup.sh test
	@$(ENV); SKEIN_FUZZ_SECONDS=$(SECONDS) SKEIN_FUZZ_TARGET=$(TARGET) SKEIN_FUZZ_SEED=$(SEED) cargo test --locked --release -p testbed --test fuzz -- --ignored --nocapture as_long_as_wanted

leaks: ## so many pods come and go, under an agent and without one, and nothing of them is left: PODS=200 (needs root)
	@scripts/setup.sh test
	@SKEIN_TEST_PODS=$(PODS) scripts/test.sh -E 'test(many_pods)' --success-output immediate

release: ## one static stripped binary: target/dist/skein
	@scripts/setup.sh
	@scripts/release.sh
