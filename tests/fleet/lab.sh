#!/bin/bash
# lab.sh: a fleet of throwaway "machines" on one Linux VM, for tests that need REAL hosts over REAL OpenSSH.
#
# Each host has its own network namespace (veth on a bridge, own address), own copy-on-write filesystem
# (overlayfs), own pid/uts/ipc/mount namespaces, own cgroup, own sshd with its own host key.
#
#   lab.sh build                     build the shared base rootfs (level b only; ~40 s, once)
#   lab.sh up N                      start hosts n1..nN and wait until ssh answers
#   lab.sh add HOST | rm HOST        one host more / one host less (HOST is nK, K = 1..200)
#   lab.sh exec HOST CMD...          run in the host's namespaces, without ssh
#   lab.sh ssh HOST CMD...           run over ssh
#   lab.sh inventory [PATH]          print an Ansible inventory
#   lab.sh pid HOST | ip HOST | ls   what there is
#   lab.sh fault HOST WHAT ...       see fault() below
#   lab.sh down                      stop everything, remove every trace
#
# Environment:
#   LAB_LEVEL   b  = systemd as PID 1 via systemd-nspawn (default)
#               bu = systemd as PID 1 via plain unshare (no systemd-container needed)
#               a  = sshd only, on an overlay of the VM's own / (no base image needed)
#   LAB_ID      0..250: labs with different ids coexist (bridge fl$ID, subnet 10.77.$ID.0/24)
#   LAB_DIR     where state lives (default: run/$LAB_ID beside this script)
#   LAB_LOWER   level a: what the hosts' filesystems start from (default /; rootless needs a base rootfs of its own)
#   LAB_BASE    the base rootfs (default: images/base beside this script)
#   LAB_BIND    space separated SRC:DST read-only binds into every host (e.g. a wheelhouse)
#   LAB_CG      the cgroup2 directory to work under (default: the root of cgroup2; rootless + systemd needs one given to the user)
#   LAB_DISK    if set (e.g. 256M): back each host's filesystem with an ext4 image of that size (real ENOSPC)
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ID=${LAB_ID:-0}; LEVEL=${LAB_LEVEL:-b}
DIR=${LAB_DIR:-$here/run/$ID}; BASE=${LAB_BASE:-$here/images/base}
BIND=${LAB_BIND:-}; DISK=${LAB_DISK:-}
BR=fl$ID; NET=10.77.$ID
CG=${LAB_CG:-/sys/fs/cgroup/unified}; [ -d "$CG" ] || CG=/sys/fs/cgroup      # hybrid VM or pure cgroup v2
CGNAME=/sys/fs/cgroup/systemd; [ -d $CGNAME ] || CGNAME=        # v1 name=systemd, hybrid only

die() { echo "lab: $*" >&2; exit 1; }
num() { [[ $1 =~ ^n([0-9]{1,3})$ ]] || die "host names are n1..n200, not '$1'"; echo "${BASH_REMATCH[1]}"; }
ipof() { echo "$NET.$((10 + $(num "$1")))"; }
nsof() { echo "fl$ID-$1"; }
hosts() { [ -d "$DIR/h" ] && ls "$DIR/h" | sort -V; }
started() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) && set -- ${s##*) } && echo "${20}"; }   # start time: guards against a reused pid
power() {                            # pid of the host's "power supply" shell, if it is still that process
    local p t; read -r p t 2>/dev/null < "$DIR/h/$1/pid" && [ "$(started "$p")" = "$t" ] && echo "$p"
}
initpid() {                          # the host's PID 1 as the VM sees it: grandchild of that shell
    local p; p=$(power "$1") && p=$(pgrep -P "$p" | head -1) && [ -n "$p" ] && pgrep -P "$p" | head -1
}
SSH() { ssh -F "$DIR/ssh_config" "$@"; }

lab_init() {                         # keys, bridge, ssh_config: idempotent
    mkdir -p "$DIR/h" "$DIR/cm"
    [ -f "$DIR/id" ] || ssh-keygen -q -t ed25519 -N '' -C "lab$ID" -f "$DIR/id"
    touch "$DIR/known_hosts"
    if ! ip link show $BR >/dev/null 2>&1; then
        ip link add $BR type bridge && ip addr add $NET.1/24 dev $BR && ip link set $BR up || die "no bridge"
    fi
    cat > "$DIR/ssh_config" <<E
Host n*
  User root
  IdentityFile $DIR/id
  IdentitiesOnly yes
  UserKnownHostsFile $DIR/known_hosts
  StrictHostKeyChecking yes
  ConnectTimeout 5
  ServerAliveInterval 2
  ServerAliveCountMax 3
  KexAlgorithms curve25519-sha256
  LogLevel ERROR
E
    local h; for h in $(hosts); do printf 'Host %s\n  HostName %s\n' "$h" "$(ipof "$h")"; done >> "$DIR/ssh_config"
}

net_up() {                           # netns + veth into the bridge; no default route: the internet is unreachable at once
    local h=$1 ns; ns=$(nsof "$h")
    ip netns add "$ns" || return 1
    ip link add "$ns" type veth peer name eth0 netns "$ns" &&
    ip link set "$ns" master $BR up &&
    ip -n "$ns" addr add "$(ipof "$h")/24" dev eth0 && ip -n "$ns" link set lo up && ip -n "$ns" link set eth0 up
}

prepare() {                          # the host's filesystem, before it boots
    local h=$1 d=$DIR/h/$1 m i; m=$d/rootfs
    mkdir -p "$m" "$d/rw"
    if [ -n "$DISK" ]; then
        truncate -s "$DISK" "$d/disk.img" && mkfs.ext4 -q -F -m 0 "$d/disk.img" && mount -o loop "$d/disk.img" "$d/rw" || return 1
    fi
    mkdir -p "$d/rw/u" "$d/rw/w"
    local lower=$BASE; [ $LEVEL = a ] && lower=${LAB_LOWER:-/}
    mount -t overlay "fl$ID-$h" -o "lowerdir=$lower,upperdir=$d/rw/u,workdir=$d/rw/w" "$m" || return 1
    if [ $LEVEL = a ] && [ "$lower" = / ]; then          # hide the VM's private parts behind empty directories that belong to the host
        for i in root home opt srv; do mkdir -p "$d/rw/$i"; mount --bind "$d/rw/$i" "$m/$i" || return 1; done
        chmod 700 "$m/root"; rm -f "$m"/etc/ssh/ssh_host_* "$m/etc/pip.conf"
    fi
    mkdir -p "$m/root/.ssh" "$m/run/sshd" "$m/etc/ssh"; chmod 700 "$m/root/.ssh"
    cp "$DIR/id.pub" "$m/root/.ssh/authorized_keys"; chmod 600 "$m/root/.ssh/authorized_keys"
    ssh-keygen -q -t ed25519 -N '' -C "$h" -f "$m/etc/ssh/ssh_host_ed25519_key" <<<y >/dev/null || return 1
    echo "$(ipof "$h") $(cut -d' ' -f1,2 "$m/etc/ssh/ssh_host_ed25519_key.pub")" > "$d/hostkey"
    echo "$h" > "$m/etc/hostname"
    { echo "127.0.0.1 localhost"; echo "$NET.1 control"; for i in $(seq 1 32); do echo "$NET.$((10+i)) n$i"; done; } > "$m/etc/hosts"
    rm -f "$m/etc/resolv.conf"; : > "$m/etc/resolv.conf"
    mkdir -p "$m/etc/ssh/sshd_config.d"
    printf 'HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\nMaxStartups 100:30:200\n' > "$m/etc/ssh/sshd_config.d/lab.conf"
    local b; for b in $BIND; do
        mkdir -p "$m/${b#*:}"; [ $LEVEL = b ] || mount --bind -o ro "${b%%:*}" "$m/${b#*:}" || return 1
    done
}

boot() {
    local h=$1 d=$DIR/h/$1 ns b args=(); ns=$(nsof "$h")
    mkdir -p "$CG/fleet$ID/$h" 2>/dev/null; [ -n "$CGNAME" ] && mkdir -p "$CGNAME/fleet$ID/$h" 2>/dev/null    # rootless: no cgroups
    for b in $BIND; do args+=(--bind-ro="$b"); done
    (   # the "power supply": runs PID 1 again when the host reboots (nspawn --keep-unit exits 133, unshare dies of SIGHUP)
        for b in "$CG" $CGNAME; do [ -w "$b/fleet$ID/$h/cgroup.procs" ] && echo $BASHPID > "$b/fleet$ID/$h/cgroup.procs"; done
        exec < /dev/null >> "$d/console.log" 2>&1
        while :; do
            if [ $LEVEL = b ]; then
                SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 setsid systemd-nspawn --quiet --boot --register=no --keep-unit \
                    --network-namespace-path=/run/netns/"$ns" --capability=CAP_NET_ADMIN -D "$d/rootfs" -M "$ns" --hostname="$h" \
                    --resolv-conf=off --timezone=off --link-journal=no --suppress-sync=yes "${args[@]}"
            else
                setsid nsenter --net=/run/netns/"$ns" unshare --mount --uts --ipc --pid --cgroup --fork --kill-child=KILL \
                    "$here/enter.sh" "$LEVEL" "$d/rootfs" "$h"
            fi
            case $? in 133|129) continue ;; *) exit ;; esac
        done
    ) &
    echo "$! $(started $!)" > "$d/pid"; disown $!
}

wait_ssh() {
    local h=$1 t a; a=$(ipof "$h")
    for t in $(seq 400); do
        (exec 3<>/dev/tcp/"$a"/22 && read -r -t 2 -u 3 line && [[ $line == SSH-* ]]) 2>/dev/null && return 0
        [ -n "$(power "$h")" ] || { tail -5 "$DIR/h/$h/console.log" >&2; return 1; }
        sleep 0.025
    done
    return 1
}

add() {
    local h=$1; num "$h" >/dev/null || exit 1
    [ -d "$DIR/h/$h" ] && die "$h is already there"
    mkdir -p "$DIR/h/$h"; net_up "$h" && prepare "$h" && boot "$h" && wait_ssh "$h" || { echo "lab: $h did not come up" >&2; return 1; }
}

finish() {                           # known_hosts and ssh_config for the hosts there are now
    cat "$DIR"/h/*/hostkey 2>/dev/null > "$DIR/known_hosts"; lab_init
}

halt() {                             # power off one host, keep its disk
    local h=$1 d=$DIR/h/$1 g p w; p=$(initpid "$h"); w=$(power "$h")
    [ -n "$w" ] && kill -KILL "$w" 2>/dev/null                        # the power supply first, or the host boots again
    [ -n "$p" ] && kill -KILL "$p" 2>/dev/null                        # PID 1 takes its whole pid namespace along
    for g in "$CG/fleet$ID/$h" ; do
        [ -d "$g" ] || continue
        echo 0 > "$g/cgroup.freeze" 2>/dev/null
        echo 1 > "$g/cgroup.kill" 2>/dev/null   # every process of the host, at once
        for _ in $(seq 200); do grep -q 'populated 0' "$g/cgroup.events" && break; sleep 0.02; done
        find "$g" -depth -type d -exec rmdir {} + 2>/dev/null
    done
    [ -n "$CGNAME" ] && [ -d "$CGNAME/fleet$ID/$h" ] && find "$CGNAME/fleet$ID/$h" -depth -type d -exec rmdir {} + 2>/dev/null
    rmdir /run/systemd/nspawn/propagate/"$(nsof "$h")" 2>/dev/null
    rm -f "$d/pid"
}

rm_host() {
    local h=$1 d=$DIR/h/$1 s
    # a ControlPersist master to this address would hang, or spoil the host that gets the address next
    s=$DIR/cm/$(ipof "$h")-root; [ -S "$s" ] && ssh -o ControlPath="$s" -O exit x 2>/dev/null
    halt "$h"
    ip link del "$(nsof "$h")" 2>/dev/null; ip netns del "$(nsof "$h")" 2>/dev/null
    mountpoint -q "$d/rootfs" && umount -R "$d/rootfs"
    mountpoint -q "$d/rw" && umount "$d/rw"
    ! mountpoint -q "$d/rootfs" && rm -rf --one-file-system "$d"
}

# Drop on the receiving side of each veth end (netdev ingress): silent, as on a real cable. A drop in an output hook would
# make the sender's send() fail with EPERM, which no real network does.
drops() {                            # HOST RULE [both]
    local h=$1 rule=$2 ns; ns=$(nsof "$h")
    ip netns exec "$ns" nft "add table netdev fault; add chain netdev fault in { type filter hook ingress device eth0 priority 0; }; add rule netdev fault in $rule" || return 1
    [ "${3:-}" = both ] || return 0
    nft "add table netdev fault_${ns//-/_}; add chain netdev fault_${ns//-/_} in { type filter hook ingress device $ns priority 0; }; add rule netdev fault_${ns//-/_} in $rule"
}

# fault HOST WHAT: what works on this kernel (no netem!) ----------------------------------------------------------
fault() {
    local h=$1 what=$2 ns; shift 2; ns=$(nsof "$h")
    case $what in
    partition) ip link set "$ns" down ;;                       # cable pulled: silence in both directions
    heal)      ip link set "$ns" up; tc qdisc del dev "$ns" root 2>/dev/null; ip netns exec "$ns" tc qdisc del dev eth0 root 2>/dev/null
               ip netns exec "$ns" nft delete table inet fault 2>/dev/null; ip netns exec "$ns" nft delete table netdev fault 2>/dev/null
               nft delete table netdev "fault_${ns//-/_}" 2>/dev/null
               [ -f "$DIR/h/$h/netem.pid" ] && kill "$(cat "$DIR/h/$h/netem.pid")" 2>/dev/null && rm -f "$DIR/h/$h/netem.pid"; true ;;
    rate)      tc qdisc replace dev "$ns" root tbf rate "$1" burst 16kb latency 400ms       # towards the host
               ip netns exec "$ns" tc qdisc replace dev eth0 root tbf rate "$1" burst 16kb latency 400ms ;;
    loss)      drops "$h" "numgen random mod 1000 < $(awk "BEGIN{print int($1*10)}") drop" both ;;      # percent, each way
    drop-port) drops "$h" "tcp dport $1 drop" ;;                # a port of the host behind a dropping firewall: connects time out
    drop-from) drops "$h" "ip saddr $1 drop" ;;                 # one-way: the host does not hear this peer
    reject-port) ip netns exec "$ns" nft "add table inet fault; add chain inet fault p { type filter hook input priority -10; }; add rule inet fault p tcp dport $1 reject with tcp reset" ;;
    kill-conns) ip netns exec "$ns" ss -4 -K "$@" >/dev/null 2>&1; true ;;     # RST established connections, e.g. sport = :22
    netem)     setsid nsenter --net=/run/netns/"$ns" python3 "$here/netem.py" "$@" < /dev/null > "$DIR/h/$h/netem.log" 2>&1 & echo $! > "$DIR/h/$h/netem.pid"; disown; sleep 0.3 ;;
    freeze)    echo 1 > "$CG/fleet$ID/$h/cgroup.freeze" ;;    # the whole machine hangs; TCP connects still succeed!
    thaw)      echo 0 > "$CG/fleet$ID/$h/cgroup.freeze" ;;
    crash)     halt "$h" ;;                                    # power cut; the disk stays
    boot)      boot "$h" && wait_ssh "$h" ;;                   # power on again
    *) die "no such fault: $what" ;;
    esac
}

cmd=${1:-}; shift || true
case $cmd in
build) exec "$here/build_base.sh" "$BASE" ;;
up)    lab_init; t0=$(date +%s%N); pids=(); rc=0
       for i in $(seq 1 "$1"); do add "n$i" & pids+=($!); done
       for p in "${pids[@]}"; do wait "$p" || rc=1; done
       finish; echo "$(hosts | wc -l) hosts in $(( ($(date +%s%N)-t0)/1000000 )) ms (level $LEVEL)"; exit $rc ;;
add)   lab_init; add "$1"; rc=$?; finish; exit $rc ;;
rm)    rm_host "$1"; finish ;;
exec)  h=$1; shift; # nsenter from the VM has every capability: without setpriv, `date -s` on a "host" would set the clock of the whole VM
       exec nsenter -t "$(initpid "$h")" -m -u -i -n -p -C -- setpriv --bounding-set -sys_time,-sys_module,-sys_rawio,-syslog,-bpf,-perfmon --inh-caps -all env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8 "$@" ;;
ssh)   h=$1; shift; SSH "$h" "$@" ;;
inventory) { echo "[nodes]"; for h in $(hosts); do echo "$h ansible_host=$(ipof "$h")"; done
       echo "[nodes:vars]"; echo "ansible_user=root"; echo "ansible_ssh_private_key_file=$DIR/id"; echo "ansible_python_interpreter=/usr/bin/python3"
       echo "ansible_control_path_dir=$DIR/cm"; echo 'ansible_control_path=%(directory)s/%%h-%%r'
       echo "ansible_ssh_common_args=-o UserKnownHostsFile=$DIR/known_hosts -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -o ConnectTimeout=5 -o ServerAliveInterval=2 -o ServerAliveCountMax=3 -o KexAlgorithms=curve25519-sha256"; } > "${1:-/dev/stdout}" ;;
pid)   initpid "$1" ;;
ip)    ipof "$1" ;;
ls)    for h in $(hosts); do echo "$h $(ipof "$h") pid=$(initpid "$h")"; done ;;
fault) fault "$@" ;;
down)  for h in $(hosts); do fault "$h" heal 2>/dev/null; rm_host "$h" & done; wait
       ip link del $BR 2>/dev/null
       for g in $CG/fleet$ID ${CGNAME:+$CGNAME/fleet$ID}; do       # the kernel lets go of an ended cgroup a moment later
           for _ in $(seq 100); do [ -d "$g" ] || break; find "$g" -depth -type d -exec rmdir {} + 2>/dev/null; sleep 0.05; done
       done
       [ -n "$(hosts)" ] && die "some hosts are still there: $(hosts)"; rm -rf --one-file-system "$DIR"; true ;;
*)     sed -n '2,30p' "$0"; exit 2 ;;
esac
