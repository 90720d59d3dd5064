# shellcheck shell=bash
# All that netns-lab/up and tests/run need, set up once: packages, .venv, the compiled module.
#
# To be sourced by a bash script that has `set -euo pipefail`. What is there already is left alone
# and not spoken of, so that a second run is quiet, quick and needs no network. What was
# interrupted is finished or begun again by the next run. It touches packages, .venv/ and build/.

KP_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
KP_VENV=$KP_ROOT/.venv
KP_BUILD=$KP_ROOT/build
KP_LOG=$KP_BUILD/setup.log

# A login without administration directories in its PATH (su, cron) would miss tools that are there.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# Debian package | a command or file that shows that it is there | for lab or tests | why
# lab? means: wanted, but all goes on without it (not every architecture has the package).
KP_PACKAGES='
iproute2    | ip                    | lab   | network namespaces by hand; what users look with
iptables    | iptables-restore      | lab   | the iptables mode, both variants
nftables    | nft                   | lab   | the nft variant, seen from below
ipset       | ipset                 | lab   | sets of the ipvs mode, seen from below
ipvsadm     | ipvsadm               | lab   | its virtual servers, seen from below
conntrack   | conntrack             | lab   | the table of connections, seen from below
curl        | curl                  | lab   | what users talk to services with
libpcap0.8  | libpcap.so.0.8        | lab   | filters of kproxy lab capture
librsvg2-bin | rsvg-convert         | lab   | kproxy lab graph as PNG
kmod        | modprobe              | lab   | iptables loads its kernel modules through it
gcc         | gcc                   | lab   | compiles the extension
libc6-dev   | /usr/include/stdio.h  | lab   | its headers
user-mode-linux | linux.uml         | lab?  | a kernel with IPVS where this one has none
make        | make                  | tests | make verify
shellcheck  | shellcheck            | tests | make verify reads the shell scripts too
'

kp_say() { printf 'kproxy: %s\n' "$*"; }

# kp_fail STATUS MESSAGE: one line on stderr, and the end.
kp_fail() {
    printf 'kproxy: %s\n' "$2" >&2
    exit "$1"
}

# kp_logged WHAT COMMAND...: run it with its output in the log; its last lines on failure.
kp_logged() {
    local what=$1 status=0
    shift
    printf '\n== %s: %s\n' "$(date -u +%FT%TZ)" "$*" >>"$KP_LOG"
    # 9 is the lock: a daemon that a package starts must not inherit it.
    "$@" >>"$KP_LOG" 2>&1 9>&- </dev/null || status=$?
    if ((status != 0)); then
        tail -n 15 "$KP_LOG" >&2
        kp_fail 1 "$what failed with status $status (no network?); its words are in ${KP_LOG#"$KP_ROOT"/}"
    fi
}

kp_need_root() {
    [ "$(id -u)" = 0 ] || kp_fail 3 "$1 needs root for network namespaces; try: sudo $1"
}

# Everything, for `lab` or for `tests`. One at a time: the second one waits, then finds it all done.
kp_setup() {
    local purpose=$1
    mkdir -p "$KP_BUILD"
    exec 9>"$KP_BUILD/setup.lock"
    if ! flock --nonblock 9; then
        kp_say "waiting for another set-up of this clone to end"
        flock 9
    fi
    : >"$KP_LOG"
    trap 'kp_fail 130 "set-up interrupted; the next run finishes it"' INT TERM
    kp_packages "$purpose"
    kp_venv
    kp_requirements "$purpose"
    kp_extension release
    [ "$purpose" = lab ] || kp_extension debug
    trap - INT TERM
    exec 9>&-
}

# --- packages ------------------------------------------------------------------------------------

kp_has() {
    case $1 in
    /*) [ -e "$1" ] ;;
    lib*.so*) [[ $(ldconfig -p) == *"$1"* ]] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

kp_packages() {
    local package sign purpose missing=() wanted=()
    while IFS='|' read -r package sign purpose _; do
        package=${package// /} sign=${sign// /} purpose=${purpose// /}
        if [ -z "$package" ] || { [ "$purpose" = tests ] && [ "$1" = lab ]; } || kp_has "$sign"; then
            continue
        fi
        if [ "$purpose" = "lab?" ]; then wanted+=("$package"); else missing+=("$package"); fi
    done <<<"$KP_PACKAGES"
    kp_install "${missing[@]}"
    for package in "${wanted[@]}"; do
        kp_try_install "$package"
    done
}

# Install what can be done without. What failed once is not tried again: that would take a minute,
# and the network, every time.
kp_try_install() {
    local failed=$KP_BUILD/without-$1
    [ ! -e "$failed" ] || return 0
    # In a shell of its own: a failure ends only that.
    (kp_install "$1") && return 0
    touch "$failed"
    kp_say "going on without $1 (to try again: rm ${failed#"$KP_ROOT"/})"
}

kp_install() {
    [ $# -gt 0 ] || return 0
    kp_has apt-get ||
        kp_fail 3 "missing: $*; this machine has no apt-get, install them by its own means"
    kp_say "installing packages: $*"
    # Ends what an interrupted installation left, else apt-get would refuse to begin.
    kp_logged "dpkg --configure" env DEBIAN_FRONTEND=noninteractive dpkg --configure -a
    # A fresh machine often updates itself in its first minutes: wait for it.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes -o DPkg::Lock::Timeout=300)
    kp_logged "apt-get update" "${apt[@]}" update
    kp_logged "installing packages" "${apt[@]}" install --no-install-recommends "$@"
}

# --- .venv ---------------------------------------------------------------------------------------

# Prints the first interpreter that is new enough; 1 if there is none.
kp_find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# kp_python_lacks PYTHON: the packages it lacks to make a .venv and to compile for it, one a line.
# Only apt's own interpreter can be helped by apt; one from elsewhere has both parts or has neither.
kp_python_lacks() {
    "$1" - <<'PYTHON'
import importlib.util, os, sys, sysconfig

name = f"python{sys.version_info.major}.{sys.version_info.minor}"
if importlib.util.find_spec("ensurepip") is None:
    print(f"{name}-venv")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print(f"{name}-dev")
PYTHON
}

# There while .venv is being made or filled: found at the start, it tells of an interruption.
KP_MAKING=$KP_BUILD/venv.making

# Whole, able to run, and made for this very place: its scripts hold its path.
kp_venv_usable() {
    [ ! -e "$KP_MAKING" ] && head -n 2 "$KP_VENV/bin/pip" 2>/dev/null | grep -qF "$KP_VENV/" &&
        "$KP_VENV/bin/python" -c 'import pip' 2>/dev/null
}

kp_venv() {
    local python lacks
    if kp_venv_usable; then
        python=$KP_VENV/bin/python
    elif ! python=$(kp_find_python); then
        kp_install python3 python3-venv python3-dev
        python=$(kp_find_python) ||
            kp_fail 3 "needs Python 3.11 or later; Debian 12 and Ubuntu 24.04 have it, or put one in PATH"
    fi
    mapfile -t lacks < <(kp_python_lacks "$python")
    kp_install "${lacks[@]}"
    mapfile -t lacks < <(kp_python_lacks "$python")
    ((${#lacks[@]} == 0)) ||
        kp_fail 3 "$python has no venv module or no headers; install what its maker calls ${lacks[*]}"
    [ "$python" != "$KP_VENV/bin/python" ] || return 0
    kp_say "making .venv with $("$python" --version)"
    touch "$KP_MAKING"
    rm -rf "$KP_VENV"
    kp_logged "making .venv" "$python" -m venv "$KP_VENV"
    rm "$KP_MAKING"
}

# kp_digest FILE...: what a stamp says; another interpreter or another content voids the stamp.
kp_digest() {
    { "$KP_VENV/bin/python" -c 'import sys; print(sys.version)' && cat "$@"; } | sha256sum
}

# kp_requirements lab|tests: what pyproject.toml names, and the project itself (editable).
kp_requirements() {
    local purpose=$1 digest stamp extras=(report) requirements
    [ "$purpose" = lab ] || extras+=(test verify bench)
    stamp=$KP_VENV/kproxy-$purpose.stamp
    digest=$(kp_digest "$KP_ROOT/pyproject.toml" "$KP_ROOT/setup.py")
    [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ] || return 0
    kp_say "installing Python packages into .venv ($(IFS=,; echo "kproxy${extras[*]:+[${extras[*]}]}"))"
    mapfile -t requirements < <(kp_requirement_lines "${extras[@]}")
    kp_pip install "${requirements[@]}"
    rm -rf "$KP_BUILD/release"
    # Not in a build environment of its own: that would ask the network for setuptools every time.
    kp_pip install --no-build-isolation --no-deps --editable "$KP_ROOT"
    kp_extension_digest >"$KP_BUILD/release.stamp"
    printf '%s\n' "$digest" >"$stamp"
}

# Run pip. Interrupted, it can leave half a package that looks whole, and .venv is made again; when
# it fails by itself (no network) it has changed nothing, and .venv stays.
kp_pip() (
    touch "$KP_MAKING"
    trap 'rm -f "$KP_MAKING"' EXIT
    trap 'trap - EXIT; exit 130' INT TERM
    kp_logged "pip" env KPROXY_DEBUG=0 \
        "$KP_VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"
)

kp_requirement_lines() {
    "$KP_VENV/bin/python" - "$KP_ROOT/pyproject.toml" "$@" <<'PYTHON'
import sys, tomllib

path, *extras = sys.argv[1:]
with open(path, "rb") as file:
    settings = tomllib.load(file)
lines = settings["build-system"]["requires"] + settings["project"]["dependencies"]
for extra in extras:
    lines += settings["project"]["optional-dependencies"][extra]
print(*lines, sep="\n")
PYTHON
}

# --- the compiled modules ------------------------------------------------------------------------

# .pyx, .pxd and .pxi, not .pyi
kp_extension_digest() {
    kp_digest "$KP_ROOT/setup.py" "$KP_ROOT"/kproxy/{,*/}*.pyx "$KP_ROOT"/kproxy/{,*/}*/*.pxi
}

# kp_extension_built DIRECTORY: every module is there, compiled for this interpreter.
kp_extension_built() {
    local suffix source
    suffix=$("$KP_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    for source in "$KP_ROOT"/kproxy/{,*/}*.pyx; do
        source=${source#"$KP_ROOT/"}
        [ -e "$1/${source%.pyx}$suffix" ] || return 1
    done
}

# kp_extension release|debug: build it if what it is made of changed (setup.py tells what a build is).
kp_extension() {
    local mode=$1 stamp=$KP_BUILD/$1.stamp digest debug=0 place=$KP_ROOT inplace=(--inplace)
    [ "$mode" = release ] || debug=1 place=$KP_BUILD/debug inplace=()
    digest=$(kp_extension_digest)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && kp_extension_built "$place"; then
        return
    fi
    kp_say "building the extension ($mode)"
    rm -rf "${KP_BUILD:?}/$mode" "$stamp"
    kp_logged "building the extension ($mode)" env --chdir="$KP_ROOT" KPROXY_DEBUG="$debug" \
        "$KP_VENV/bin/python" setup.py --quiet build_ext "${inplace[@]}"
    printf '%s\n' "$digest" >"$stamp"
}
