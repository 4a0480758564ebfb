#!/usr/bin/env bash
# Boots a real systemd, as PID 1 of a container, on this machine's own /usr, and keeps it until standard input ends.
#
#   boot.sh FILES [nspawn option ...]
#
# FILES is a folder that is laid over the container's root: units in etc/systemd/system, programs in usr/bin, and so on.
# If it holds a whole system, with a systemd in it, that is booted as it is and where it is, and not this machine's /usr.
# Once the system is up, one line goes to standard output: the pid, on this side, of the container's PID 1, for
# `nsenter -t PID -a`. When standard input ends, or on SIGTERM, the system is powered off and everything is removed.
# Needs root and systemd-nspawn. Nothing of the machine is written to but a folder in /tmp and cgroups of our own.
set -euo pipefail
files=$1
shift
root=$(mktemp -d /tmp/px-systemd.XXXXXX)
name=px$$
over=()

lay_out_links() {
    # A root with nothing of its own but the links into /usr. A machine-id that exists makes this no first boot, which would
    # enable every unit that is installed on this machine.
    mkdir -p "$root"/{etc/systemd/system,var,run,tmp,proc,sys,dev,root,opt,home,usr}
    for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
    cp -L /etc/os-release "$root/etc/"
    cp -a /etc/ld.so.cache /etc/alternatives "$root/etc/"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    printf 'passwd: files systemd\ngroup: files systemd\nhosts: files myhostname\n' >"$root/etc/nsswitch.conf"
    for unit in systemd-firstboot.service systemd-sysctl.service systemd-networkd.service systemd-networkd.socket \
        systemd-resolved.service systemd-timesyncd.service systemd-udevd.service ldconfig.service dev-hugepages.mount \
        systemd-remount-fs.service systemd-journal-flush.service; do
        ln -s /dev/null "$root/etc/systemd/system/$unit"
    done
    cp -a "$files/." "$root/"
    chmod 755 "$root" # the services' users must be able to pass
    mkdir -p "$root.usr"
    mv "$root"/usr "$root.usr/over" # what FILES adds to /usr lies over the machine's, read-only
    mkdir "$root/usr"
    over=(--overlay-ro=/usr:"$root.usr/over":/usr)
}
if [ -x "$files/usr/lib/systemd/systemd" ]; then rmdir "$root"; ln -s "$(realpath "$files")" "$root"; else lay_out_links; fi

# A place of our own in the cgroup trees that systemd needs; inside, there is one v2 tree, as on today's hosts.
trees=()
for tree in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do [ -d "$tree" ] && trees+=("$tree/$name"); done
for tree in "${trees[@]}"; do mkdir -p "$tree"; done

boot() {
    for tree in "${trees[@]}"; do echo "$BASHPID" >"$tree/cgroup.procs"; done
    export UNIFIED_CGROUP_HIERARCHY=1
    exec unshare --mount sh -c 'mkdir -p /run/systemd/nspawn; mount -t tmpfs tmpfs /run/systemd/nspawn; exec "$@"' - \
        systemd-nspawn -q -D "$(realpath "$root")" "${over[@]}" --register=no --keep-unit --private-network \
        --link-journal=no --resolv-conf=off --timezone=off --console=pipe --machine="$name" --kill-signal=SIGRTMIN+3 \
        "$@" --boot systemd.unit=basic.target
}
boot "$@" </dev/null >"$root.log" 2>&1 &
container=$!

down() {
    kill -TERM "$container" 2>/dev/null || true
    wait "$container" || true
    for tree in "${trees[@]}"; do find "$tree" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
    rm -rf --one-file-system "$root" "$root.usr" "$root.log"
}
trap down EXIT
trap 'exit 143' TERM

init=
for _ in $(seq 1000); do
    init=$(awk '{print $1}' "/proc/$container/task/$container/children" 2>/dev/null || true)
    [ -n "$init" ] && [ "$(nsenter -t "$init" -a systemctl is-system-running 2>/dev/null)" = running ] && break
    kill -0 "$container" 2>/dev/null || { cat "$root.log" >&2; exit 1; }
    init=
    sleep 0.02
done
[ -n "$init" ] || { echo "the container did not come up" >&2; tail -50 "$root.log" >&2; exit 1; }
echo "$init"
exec 1>&- 3<&0
cat <&3 >/dev/null & # a job in the background, so that SIGTERM is heard at once; it would read /dev/null without the 3
wait $! || true
