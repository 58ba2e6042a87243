#!/usr/bin/env bash
# Installs a skein binary and its systemd unit on this machine and starts the agent.
#
#   scripts/install.sh BINARY UNIT [ADDRESS]
#
# ADDRESS is this machine's towards the others, where it has several. May be run again: the agent is restarted with the
# new binary, containers go on.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: install.sh BINARY UNIT [ADDRESS]" >&2; exit 2; }
binary=$1 unit=$2 address=${3:-}

if ! command -v nft >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    apt-get install -q -y --no-install-recommends nftables >/dev/null
fi
# Beside the old file, then over it: the old one may be running.
install -m 0755 "$binary" /usr/local/bin/.skein.new
mv /usr/local/bin/.skein.new /usr/local/bin/skein
install -m 0644 "$unit" /etc/systemd/system/skein.service
if [ -n "$address" ]; then echo "SKEIN_FLAGS=--address $address" >/etc/default/skein; fi
systemctl daemon-reload
systemctl enable --quiet skein
systemctl restart skein
/usr/local/bin/skein version
