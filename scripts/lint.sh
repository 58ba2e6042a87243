#!/usr/bin/env bash
# What `make lint` checks, the quick things first.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
. .cache/env

step() { echo "lint: $*"; }

step "format"
cargo fmt --all --check

step "licences, bans, sources"
cargo deny --locked check --hide-inclusion-graph licenses bans sources

if timeout 60 cargo deny --locked fetch db >/dev/null 2>&1; then
    step "advisories"
    cargo deny --locked check --hide-inclusion-graph advisories
else
    step "advisories NOT checked: the advisory database cannot be reached from here"
fi

step "clippy"
cargo clippy --locked --workspace --all-targets -- -D warnings

step "rustdoc"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet
