#!/bin/bash
# Installs vm-replica-broker on a Debian 12 host from this checkout. Idempotent.
#
#   tools/install.sh                 packages, /opt/vmreplica, commands, units, example configuration
#   tools/install.sh --check         say what is missing, change nothing (exit 2 if anything is)
#   tools/install.sh --broker        a host of brokers only: no libvirt, QEMU or libnbd
#   tools/install.sh --root DIR      put everything below DIR, which must exist; no packages
#
# What it writes:
#   /opt/vmreplica                   the program, a virtual environment of its own
#   /usr/local/bin/vmrctl            and vmreplica-node, vmreplica-broker: links into it
#   /etc/systemd/system/             the two units; nothing is started
#   /etc/vmreplica/                  *.yaml.example (always the newest), tls/; your own files stay
set -euo pipefail
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ROOT=
MODE=install
EXTRA='[host]'
COMMANDS="vmrctl vmreplica-node vmreplica-broker"
BROKER_PACKAGES="python3 python3-venv ca-certificates"
# libvirt's Python binding is built against the host's own libvirt.
HOST_PACKAGES="qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-clients python3-libnbd
 python3-dev gcc libc6-dev libvirt-dev pkg-config"

say() { printf 'install: %s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 2; }

arguments() {
  while (($#)); do
    case $1 in
      --check) MODE=check ;;
      --broker) EXTRA= ;;
      --root)
        [[ -d ${2:-} ]] || fail "--root wants a directory that exists"
        ROOT=$(cd "$2" && pwd); shift ;;
      -h|--help) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
      *) fail "unknown argument $1 (known: --check, --broker, --root DIR)" ;;
    esac
    shift
  done
}

wanted_packages() { printf '%s ' $BROKER_PACKAGES; [[ -z $EXTRA ]] || printf '%s ' $HOST_PACKAGES; }

missing_packages() {
  local package
  for package in $(wanted_packages); do
    dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || printf '%s ' "$package"
  done
}

# What the installed program was made from: the sources and this script.
fingerprint() {
  (cd "$SOURCE" && { echo "extra $EXTRA"; find vmreplica broker node vmrctl pyproject.toml tools/install.sh \
      tools/constraints.txt \
      -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum; } | sha256sum | cut -d' ' -f1)
}

program_current() {
  [[ -x $PROGRAM/bin/vmrctl && -f $PROGRAM/.installed && $(<"$PROGRAM/.installed") == "$(fingerprint)" ]]
}

check() {
  local faults=0 missing
  missing=$(missing_packages)
  if [[ -n $missing ]]; then
    say "missing packages; as root run:  apt-get install -y $missing"
    faults=1
  fi
  program_current || { say "$PROGRAM is missing or older than this checkout"; faults=1; }
  if ((faults)); then exit 2; fi
  say "complete"
}

install_packages() {
  local missing log
  missing=$(missing_packages)
  [[ -n $missing ]] || return 0
  [[ -z $ROOT ]] || fail "missing packages, and --root installs none: $missing"
  say "packages: $missing"
  log=$(mktemp /tmp/vmreplica-install.XXXXXX.log)
  # shellcheck disable=SC2086
  { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing \
      || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; }
  } >"$log" 2>&1 || { tail -20 "$log" >&2; fail "the packages could not be installed; the whole log is $log"; }
  rm -f "$log"
}

install_program() {
  if program_current; then say "$PROGRAM is current"; return 0; fi
  say "program: $PROGRAM"
  [[ -x $PROGRAM/bin/python ]] || /usr/bin/python3 -m venv "$PROGRAM"
  # Built from a copy, so that nothing is left in the checkout.
  local copy; copy=$(mktemp -d)
  cp -r "$SOURCE"/{vmreplica,broker,node,vmrctl,pyproject.toml,README.md} "$copy"
  "$PROGRAM/bin/pip" install -q --disable-pip-version-check -c "$SOURCE/tools/constraints.txt" "$copy$EXTRA"
  # The same version again is "satisfied" for pip: the program itself is always replaced.
  "$PROGRAM/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps "$copy"
  rm -rf "$copy"
  if [[ -n $EXTRA ]]; then
    local site file
    site=$("$PROGRAM/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for file in /usr/lib/python3/dist-packages/nbd.py /usr/lib/python3/dist-packages/libnbdmod*.so; do
      ln -sfn "$file" "$site/${file##*/}"
    done
    "$PROGRAM/bin/python" -c 'import libvirt, nbd' || fail "libvirt or libnbd cannot be imported"
  fi
  fingerprint >"$PROGRAM/.installed"
}

install_files() {
  install -d "$ROOT/usr/local/bin" "$ROOT/etc/systemd/system"
  install -d -m 0700 "$ROOT/etc/vmreplica" "$ROOT/etc/vmreplica/tls"
  local name
  for name in $COMMANDS; do
    ln -sfn "$PROGRAM/bin/$name" "$ROOT/usr/local/bin/$name"
  done
  install -m 0644 "$SOURCE"/deploy/systemd/vmreplica-{node,broker}.service "$ROOT/etc/systemd/system/"
  for name in node broker; do
    install -m 0600 "$SOURCE/deploy/config/$name.yaml" "$ROOT/etc/vmreplica/$name.yaml.example"
  done
  if [[ -z $ROOT && -d /run/systemd/system ]]; then systemctl daemon-reload; fi
}

main() {
  arguments "$@"
  PROGRAM=$ROOT/opt/vmreplica
  if [[ $MODE == check ]]; then check; return; fi
  if [[ -z $ROOT && $(id -u) != 0 ]]; then
    local missing; missing=$(missing_packages)
    [[ -z $missing ]] || say "missing packages: $missing" >&2
    fail "it must be run by root:  sudo tools/install.sh"
  fi
  install_packages
  install_program
  install_files
  say "done. Next: write /etc/vmreplica/node.yaml (docs/operations/first-steps.md)"
}

main "$@"
