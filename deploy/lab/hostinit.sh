#!/bin/bash
# Pid 1 of one lab host, in fresh net, mount, pid, uts and ipc namespaces. Bash, because it reaps
# orphans. Environment: LAB_HOST, LAB_ADDRESS, LAB_HOST_DIR, LAB_SHARED (directory, loop device or
# empty), LAB_BOOT (kernel directory), LAB_LIBVIRT (1 or empty). Everything that lasts lies in
# LAB_HOST_DIR; everything else (run, etc, /var/lib, /srv) is a mount of this host alone.
set -eu
trap 'echo "host init failed at line $LINENO" >&2' ERR
cd /
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
hostname "$LAB_HOST"

mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/lab /run/libvirt
# /etc and /var/lib get mount points that the root file system does not have.
for part in etc var/lib; do
  over=/run/lab/over/$part
  mkdir -p "$over/upper" "$over/work"
  mount -t overlay -o "lowerdir=/$part,upperdir=$over/upper,workdir=$over/work" overlay "/$part"
done
keep() { mkdir -p "$LAB_HOST_DIR/$1" "$2"; mount --bind "$LAB_HOST_DIR/$1" "$2"; }
cp "$LAB_HOST_DIR/hosts" /etc/hosts
echo "$LAB_HOST" >/etc/hostname
: >/etc/resolv.conf
keep etc-vmreplica /etc/vmreplica
keep var-lib-vmreplica /var/lib/vmreplica
mount -t tmpfs -o mode=755 srv /srv
keep console /srv/console
keep scratch /srv/scratch
keep images /srv/images
mkdir -p /srv/boot /srv/replicas
if [ -n "$LAB_BOOT" ]; then mount --bind -o ro "$LAB_BOOT" /srv/boot; fi
case $LAB_SHARED in
  '') keep replicas /srv/replicas ;;
  /dev/*) mount -t xfs "$LAB_SHARED" /srv/replicas ;;
  *) mount --bind "$LAB_SHARED" /srv/replicas ;;
esac
case $LAB_HOST_DIR in /dev/shm/*) ;; *) mount -t tmpfs shm /dev/shm ;; esac
mount -t sysfs sysfs /sys
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts /dev/pts
mount --bind /dev/pts/ptmx /dev/ptmx

if [ -n "$LAB_LIBVIRT" ]; then
  keep etc-libvirt /etc/libvirt
  keep var-lib-libvirt /var/lib/libvirt
  mkdir -p /var/lib/libvirt/qemu /var/lib/libvirt/images
  keep log/libvirt /var/log/libvirt
fi

echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
ip link set lo up
for _ in $(seq 500); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.01; done
ip addr add "$LAB_ADDRESS/24" dev eth0
ip link set eth0 up
if [ -n "$LAB_LIBVIRT" ]; then libvirtd -d; fi
touch /run/lab/ready

trap 'exit 0' TERM
set +e
trap - ERR
while :; do sleep 1000 & wait $!; done
