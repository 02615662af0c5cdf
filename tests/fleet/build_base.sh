#!/bin/bash
# build_base.sh [TARGET]: build the read-only Debian rootfs that all systemd hosts share (about 40 s, 220 MB), or unpack
# it from a cached TARGET.tar.zst (about 3 s). As root: --mode=root. As a user with an /etc/subuid range: --mode=unshare,
# which writes TARGET.tar, to be unpacked inside the user namespace (see the script itself).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/images/base}
[ -e "$target" ] && { echo "$target exists"; exit 0; }
mkdir -p "$(dirname "$target")"
if [ "$(id -u)" = 0 ] && [ -f "$target.tar.zst" ]; then
    mkdir "$target.new"; zstd -dcq "$target.tar.zst" | tar -xpf - -C "$target.new"; mv "$target.new" "$target"; exit 0
fi
# The package sources of the machine itself, whatever mirror it uses.
. /etc/os-release
sources=/etc/apt/sources.list.d/debian.sources; [ -f "$sources" ] || sources=/etc/apt/sources.list
PKGS=systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,python3,python3-venv,python3-apt,iproute2,procps,sudo,ca-certificates,curl
if [ "$(id -u)" = 0 ]; then mode=root out=$target.new; else mode=unshare out=$target.tar; fi
# rm ssh_host_*: every host gets a key of its own from lab.sh. The masked timers would only make noise in tests.
time mmdebstrap --variant=minbase --mode=$mode --include="$PKGS" \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; echo host > "$1/etc/hostname"; : > "$1/etc/default/locale"; : > "$1/etc/machine-id"' \
    --customize-hook='for u in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer dpkg-db-backup.timer systemd-resolved.service systemd-timesyncd.service; do ln -sf /dev/null "$1/etc/systemd/system/$u"; done' \
    "$VERSION_CODENAME" "$out" "$sources"
if [ "$mode" = root ]; then
    mv "$target.new" "$target"
    ! command -v zstd >/dev/null || tar -C "$target" -cf - . | zstd -q -T0 -3 -f -o "$target.tar.zst"
fi
