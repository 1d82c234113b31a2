# Set-up shared by lab/run and lab/test: system packages, virtual environment, project. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Python's compiled files are kept, out of the way: without them every process of a run, and each test starts some,
# compiles the bench anew.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$PWD/.venv/pycache"

SYSTEM_PACKAGES=(qemu-system-x86 mmdebstrap debian-archive-keyring util-linux python3-venv tcpdump tshark zstd)

# What a kernel for User-Mode Linux is built with, and its nodes' second network: lab/test needs it, lab/run does not.
UML_PACKAGES=(gcc libc6-dev make flex bison bc xz-utils slirp4netns)

say() { printf 'hil: %s\n' "$*"; }
die() { printf 'hil: error: %s\n' "$*" >&2; exit 2; }

missing_packages() {
    local package
    for package in "${SYSTEM_PACKAGES[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || printf '%s\n' "$package"
    done
}

install_system_packages() {
    command -v apt-get >/dev/null || die "apt-get is missing: this script sets up Debian 12 or 13 and Ubuntu 24.04; elsewhere install ${SYSTEM_PACKAGES[*]} by hand"
    local missing as_root=()
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            die "these packages are missing and need root; run this, then start again:
    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
        fi
    fi
    say "installing system packages: ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update \
        || die "apt-get update failed: is the network there? Then start again."
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null \
        || die "apt-get could not install ${missing[*]}: see its message above; then start again"
}

find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
            && { printf '%s\n' "$candidate"; return; }
    done
    die "no Python 3.11 or newer with venv was found; install python3 and python3-venv"
}

make_environment() {
    local stamp python
    stamp=$(sha256sum pyproject.toml | cut -d' ' -f1)
    [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c '' 2>/dev/null && return
    python=$(find_python)
    say "making the virtual environment .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv || die "python -m venv failed: see its message above"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' \
        || die "the Python packages could not be installed: is the network there? Then start again."
    printf '%s\n' "$stamp" > .venv/stamp
}

set_up() {
    install_system_packages
    make_environment
}
