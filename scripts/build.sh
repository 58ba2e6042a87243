#!/usr/bin/env bash
# cargo build with the given arguments, and how long it took.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
. .cache/env

began=$SECONDS
cargo build --locked "$@"
echo "cargo build took $((SECONDS - began)) s"
