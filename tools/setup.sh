#!/bin/bash
# Brings a Debian 12 machine to the point where `make check` and `make lab` work.
#
#   tools/setup.sh            install what is missing (root), build .venv, fetch the guest kernel
#   tools/setup.sh --check    say what is missing, change nothing (exit 2 if anything is)
#   tools/setup.sh --force    ignore the stamp of the last good run
#
# Idempotent. A stamp (content hash of this script and pyproject.toml) makes a repeated run
# return at once. Without root it names the missing packages and the exact command, exit 2.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
CACHE=$ROOT/build/cache
STAMP=$VENV/.setup-stamp
KERNEL_DIR=$CACHE/kernel
MODULES="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk button evdev"

# The etcd, libvirt, QEMU and NBD pieces are what the product talks to; the rest builds and tests.
PACKAGES="
 python3 python3-venv python3-dev python3-yaml gcc libc6-dev make git pkg-config
 procps util-linux iproute2 nftables iptables ebtables e2fsprogs xfsprogs
 etcd-server etcd-client
 qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-clients libvirt-dev
 libvirt-daemon-config-network libvirt-daemon-driver-qemu dnsmasq-base
 libnbd-bin python3-libnbd nbdkit genisoimage
 strace tmux zsh nginx haproxy virtnbdbackup keepalived faketime btrfs-progs
"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 2; }

stamp_value() { cat "$ROOT/tools/setup.sh" "$ROOT/pyproject.toml" "$ROOT/tools/constraints.txt" | sha256sum | cut -d' ' -f1; }

missing_packages() {
  local have p
  have=" $(dpkg-query -W -f='${db:Status-Abbrev}${Package}\n' | sed -n 's/^ii *//p' | tr '\n' ' ') "
  for p in $PACKAGES; do [[ $have == *" $p "* ]] || printf '%s ' "$p"; done
  # Node.js may come from elsewhere; Debian's is taken only where there is none.
  command -v node >/dev/null || printf 'nodejs '
  command -v npm >/dev/null || printf 'npm '
}

venv_ready() {
  [[ -x $VENV/bin/vmrctl && -x $VENV/bin/pytest ]] \
    && "$VENV/bin/python" -c 'import nbd, libvirt, grpc, aetcd, yaml' 2>/dev/null
}

kernel_ready() { [[ -s $KERNEL_DIR/vmlinuz && -s $KERNEL_DIR/release ]]; }

install_packages() {
  local missing; missing=$(missing_packages)
  [[ -z $missing ]] && return 0
  local install="apt-get install -y --no-install-recommends $missing"
  [[ $(id -u) == 0 ]] || fail "missing packages; as root run:  apt-get update && $install"
  say "installing: $missing"
  # Daemons of the packages must not start: the lab runs its own, in namespaces.
  local policy=/usr/sbin/policy-rc.d made=
  [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made=1; }
  trap '[[ -z ${made:-} ]] || rm -f /usr/sbin/policy-rc.d' RETURN
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive $install >"$CACHE/apt.log" 2>&1 \
    || { apt-get update >>"$CACHE/apt.log" 2>&1 \
         && DEBIAN_FRONTEND=noninteractive $install >>"$CACHE/apt.log" 2>&1; } \
    || { tail -20 "$CACHE/apt.log" >&2; return 1; }
}

build_venv() {
  if [[ ! -x $VENV/bin/python ]]; then
    say "creating $VENV"
    /usr/bin/python3 -m venv "$VENV"
  fi
  say "installing the project into the venv"
  "$VENV/bin/pip" install -q --disable-pip-version-check -c "$ROOT/tools/constraints.txt" -e "$ROOT[host,dev]"
  # Only these two files: the whole dist-packages on PYTHONPATH would shadow the venv's own.
  local site; site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  local file
  for file in /usr/lib/python3/dist-packages/nbd.py /usr/lib/python3/dist-packages/libnbdmod*.so; do
    ln -sfn "$file" "$site/$(basename "$file")"
  done
}

fetch_kernel() {
  say "fetching Debian's cloud kernel for the lab's guest (unpacked, not installed)"
  local work release deb
  work=$(mktemp -d "$CACHE/kernel.XXXXXX")
  (
    cd "$work"
    deb=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -1)
    if [[ -z $deb && $(id -u) == 0 ]]; then
      apt-get update -q >/dev/null
      deb=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -1)
    fi
    [[ -n $deb ]] || { echo "setup: linux-image-cloud-amd64 is unknown to apt; run apt-get update" >&2; exit 1; }
    apt-get download -q "$deb" >/dev/null 2>apt.log || { cat apt.log >&2; exit 1; }
    dpkg-deb -x ./*.deb tree
    release=$(basename tree/boot/vmlinuz-*); release=${release#vmlinuz-}
    mkdir out
    cp "tree/boot/vmlinuz-$release" out/vmlinuz
    local_path() { find tree/lib/modules -name "$1.ko" -print -quit; }
    for module in $MODULES; do
      path=$(local_path "$module")
      if [[ -n $path ]]; then cp "$path" out/; fi
    done
    echo "$release" >out/release
  )
  rm -rf "$KERNEL_DIR"
  mv "$work/out" "$KERNEL_DIR"
  rm -rf "$work"
}

main() {
  local mode=${1:-}
  case $mode in ''|--force|--check) ;; *) fail "unknown argument $mode (known: --check, --force)";; esac
  if [[ $mode == '' && -f $STAMP && $(<"$STAMP") == "$(stamp_value)" ]] && kernel_ready; then
    say "nothing to do"
    return 0
  fi
  if [[ $mode == --check ]]; then
    local faults=0 missing; missing=$(missing_packages)
    [[ -z $missing ]] || { say "missing packages: $missing"; faults=1; }
    venv_ready || { say "the virtual environment $VENV is not complete"; faults=1; }
    kernel_ready || { say "the guest kernel is not in $KERNEL_DIR"; faults=1; }
    [[ $faults == 0 ]] && { say "complete"; return 0; }
    exit 2
  fi
  mkdir -p "$CACHE"
  install_packages
  build_venv
  kernel_ready || fetch_kernel
  venv_ready || { "$VENV/bin/python" -c 'import nbd, libvirt, grpc, aetcd, yaml'; fail "the virtual environment is not complete"; }
  stamp_value >"$STAMP"
  say "done"
}

main "$@"
