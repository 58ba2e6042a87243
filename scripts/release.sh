#!/usr/bin/env bash
# Builds target/dist/skein: one static, stripped file, smaller than 30 MB.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
. .cache/env

LIMIT=30000000
target=$(rustc -vV | sed -n 's/^host: //p')
# Own directory: these flags would make cargo build everything in target/ anew, each time they change.
export CARGO_TARGET_DIR=$PWD/target/static
export RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static'
export LIBSECCOMP_LINK_TYPE=static
LIBSECCOMP_LIB_PATH=/usr/lib/$(gcc -print-multiarch)
export LIBSECCOMP_LIB_PATH

scripts/build.sh --profile dist -p cli --target "$target"
built=$CARGO_TARGET_DIR/$target/dist/skein

# ldd fails for what is not dynamic, and says so.
linked=$(ldd "$built" 2>&1 || true)
case $linked in
    *"not a dynamic executable"* | *"statically linked"*) ;;
    *) echo "release: $built is not static: $linked" >&2; exit 1 ;;
esac
size=$(stat -c %s "$built")
[ "$size" -lt $LIMIT ] || { echo "release: $built has $size bytes, the limit is $LIMIT" >&2; exit 1; }
"$built" version >/dev/null || { echo "release: $built does not run" >&2; exit 1; }
install -D -m 0755 "$built" target/dist/skein
echo "release: target/dist/skein, static, $size bytes"
