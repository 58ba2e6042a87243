#!/usr/bin/env bash
# Every test of the workspace. Arguments go to nextest.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
. .cache/env

[ "$(id -u)" = 0 ] || { echo "test: needs root: namespaces, nft and containers are real here" >&2; exit 1; }

# The binaries as well as the tests: clusters of the testbed run the `skein` that was built beside them.
scripts/build.sh --workspace --all-targets
if command -v cargo-nextest >/dev/null; then
    cargo nextest run --locked --workspace "$@"
    # The simulator's own test: the same tests with bugs put in, which it has to find.
    # (The whole workspace is named so that no other crate is built again.)
    [ $# -gt 0 ] || cargo nextest run --locked --workspace --features raft-store/planted-bugs --test sim planted
else
    echo "test: no cargo-nextest, using cargo test"
    cargo test --locked --workspace --lib --bins --tests --no-fail-fast -- --test-threads=2
fi
cargo test --locked --workspace --doc --quiet
