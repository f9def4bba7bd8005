#!/bin/sh
# Init of the guest. Client, appliance (this namespace) and server; the server knows no way back to the client's network,
# so that an answer proves a translation. Reports to the console, see kernel_test.rs.
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
echo "guest: kernel $(uname -r)"

# The shell and its applets take busybox's own ip, which knows no namespaces, unless told the path.
ip() {
    /bin/ip "$@"
}

finish() {
    echo END
    reboot -f
}

# check SENTENCE COMMAND...: runs it silently and reports.
check() {
    sentence=$1
    shift
    if "$@" >/tmp/output 2>&1; then
        echo "PASS $sentence"
    else
        echo "FAIL $sentence"
        cat /tmp/output
        return 1
    fi
}

for module in /modules/*.ko; do
    insmod "$module" || echo "FAIL insmod $module"
done

# side NAMESPACE DEVICE ADDRESS OURS: a namespace joined to us by a veth pair, whose receiving ends take redirected frames
# (gro) and whose checksums are made in software (tx off).
side() {
    ip netns add "$1" &&
        ip link add "$2" type veth peer name eth0 netns "$1" &&
        ip address add "$4/24" dev "$2" && ip link set "$2" up &&
        ip -n "$1" link set lo up && ip -n "$1" address add "$3/24" dev eth0 && ip -n "$1" link set eth0 up &&
        ip netns exec "$1" ethtool -K eth0 gro on tx off tso off gso off &&
        ethtool -K "$2" tx off tso off gso off
}

ip link set lo up
check "the client is wired" side client in0 10.0.0.2 10.0.0.1 || finish
check "the server is wired" side server out0 198.51.100.2 198.51.100.1 || finish
ip -n client route add default via 10.0.0.1
check "the client reaches the appliance" ip netns exec client ping -c 1 -W 5 10.0.0.1 || finish
check "the server reaches the appliance" ip netns exec server ping -c 1 -W 5 198.51.100.1 || finish

cat >/etc/forwarder/forwarder.toml <<CONFIG
[[interface]]
name = "out0"
role = "outside"

[[interface]]
name = "in0"
role = "inside"

[flows]
max = "16k"

[flow_logs]
interval = "1s"

[[flow_logs.destination]]
kind = "file"
path = "/tmp/flow.log"
CONFIG

forwarder run --config /etc/forwarder/forwarder.toml >/tmp/log 2>&1 &
controller=$!

# The verifier is emulated as well: it takes its time.
ready() {
    for _ in $(seq 1 90); do
        forwarder status --json && return 0
        kill -0 "$controller" || break
        sleep 1
    done
    return 1
}
if ! check "the datapath loads" ready; then
    cat /tmp/log
    finish
fi

# What the server sees as the peer is what it answers.
# shellcheck disable=SC2016
ip netns exec server socat TCP-LISTEN:7000,fork,reuseaddr SYSTEM:'read line; echo $line $SOCAT_PEERADDR' &
# shellcheck disable=SC2016
ip netns exec server socat UDP-LISTEN:7001,fork SYSTEM:'read line; echo $line $SOCAT_PEERADDR' &
sleep 2

answer() {
    echo hello | timeout 20 /bin/ip netns exec client socat -T 10 -t 10 - "$1" | tr -d '\r' >/tmp/answer
    cat /tmp/answer
    [ "$(cat /tmp/answer)" = "hello 198.51.100.1" ]
}
check "ping, and the answer comes back" ip netns exec client ping -c 3 -W 10 198.51.100.2
check "TCP, from the translated address" answer TCP:198.51.100.2:7000
check "UDP, from the translated address" answer UDP:198.51.100.2:7001

# Nowhere else can the wall clock be set without harm: an hour back, then to an hour ahead, while a flow goes on. What the
# records then have to be is known to clock.rs.
now=$(date +%s)
echo "CLOCK $now"
set_clock() {
    sleep 4
    date -s "@$((now - 3600))"
    sleep 4
    date -s "@$((now + 3600))"
}
set_clock >/dev/null &
check "ping while the clock is set" ip netns exec client ping -c 12 -i 1 -W 10 198.51.100.2

echo "STATUS $(forwarder status --json | tr -d '\n')"
kill "$controller"
gone() {
    for _ in $(seq 1 20); do
        kill -0 "$controller" || return 0
        sleep 1
    done
    return 1
}
check "it stops when told" gone
cat /tmp/log
while read -r record; do
    echo "RECORD $record"
done </tmp/flow.log
finish
