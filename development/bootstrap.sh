#!/bin/sh
# Prepare .venv: a Python that NetBox supports, with NetBox, the plugin and the development tools.
#
#   development/bootstrap.sh [test]
#
# Missing software is installed from the distribution's packages if that is possible without asking (as root, or with
# sudo without a password); otherwise one message lists it, with the command that installs it. If everything is installed,
# no privileges are needed. "test" also installs a browser, RabbitMQ and PgBouncer, without which some tests are skipped.
# The rest is Python: see development/stack/.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=$root/.venv
purpose=${1:-}
cd "$root"

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---------------------------------------------------------------------------------------------------------- Python

# NetBox 4.7 supports 3.12 to 3.14. A free-threaded or debug build would have to compile everything.
is_supported() {
    [ -x "$1" ] && "$1" -c '
import sys, sysconfig
sys.exit(not ((3, 12) <= sys.version_info[:2] <= (3, 14) and sys.version_info.releaselevel == "final"
              and not sysconfig.get_config_var("Py_GIL_DISABLED")))' >/dev/null 2>&1
}

candidates() {
    [ -z "${PYTHON:-}" ] || command -v "$PYTHON" || true
    for name in python3.12 python3.13 python3.14 python3 python; do
        command -v "$name" || true
    done
    for minor in 12 13 14; do
        ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.$minor.*/bin/python 2>/dev/null || true
        ls -d /opt/python*/bin/python3.$minor /usr/local/bin/python3.$minor 2>/dev/null || true
        ! have uv || uv python find --no-python-downloads "3.$minor" 2>/dev/null || true
    done
}

# A venv works only where it was created: a checkout may be moved, or copied
is_ours() { [ "$(cat "$venv/.place" 2>/dev/null || printf '%s\n' "$root")" = "$root" ] && is_supported "$venv/bin/python"; }

find_python() {
    # Keep the Python that created the venv
    python=$venv/bin/python
    ! is_ours || return 0
    python=$(candidates | while read -r path; do
        case $path in "$venv"/*) continue ;; esac
        if is_supported "$path"; then printf '%s\n' "$path"; break; fi
    done)
    [ -n "$python" ]
}

# --------------------------------------------------------------------------------------- the distribution's packages

asks_python() { "$python" -c "$1" >/dev/null 2>&1; }

# The version of Debian's or Ubuntu's python3, installed or not
packaged_python() {
    apt-cache policy python3 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*\.[0-9]*\).*/\1/p'
}

has_postgresql() {
    for bindir in "$(pg_config --bindir 2>/dev/null)" /usr/lib/postgresql/*/bin; do
        [ ! -x "$bindir/initdb" ] || return 0
    done
    have initdb
}

has_chromium() { have chromium || have chromium-browser || have google-chrome; }

# Fills $missing with the names of packages, and $homeless if no package has a supported Python
find_missing() {
    missing= homeless=
    if ! find_python; then
        # apt-cache is empty on a machine whose package lists were never downloaded
        if have apt-get && [ -z "$(packaged_python)" ] && can_install; then as_root apt-get update -qq; fi
        case $(packaged_python) in
            3.12|3.13|3.14) missing="$missing python3 python3-venv python3-dev" ;;
            *) homeless=1 ;;
        esac
    elif ! asks_python 'import ensurepip, venv'; then
        missing="$missing python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    fi
    # To compile psycopg
    if [ ! -e "$venv/.complete" ]; then
        have cc || have gcc || missing="$missing gcc libc6-dev"
        have pg_config && [ -e "$(pg_config --includedir)/libpq-fe.h" ] || missing="$missing libpq-dev"
        if [ -n "$python" ] && ! asks_python 'import os, sysconfig
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))'; then
            missing="$missing python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev"
        fi
    fi
    has_postgresql || missing="$missing postgresql"
    have redis-server || have valkey-server || missing="$missing redis-server"
    [ "$purpose" != test ] || [ -x /usr/sbin/pgbouncer ] || have pgbouncer || missing="$missing pgbouncer"
    # Ubuntu's chromium package is a snap, which does not work in containers: the browser tests report what to do there
    if [ "$purpose" = test ] && ! has_chromium && ! grep -qs '^ID=ubuntu' /etc/os-release; then
        missing="$missing chromium"
    fi
}

can_install() { have apt-get && { [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }; }; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

install_missing() {
    if [ -n "$homeless" ]; then
        fail "NetBox needs Python 3.12, 3.13 or 3.14. None was found on the PATH, with pyenv or with uv, and the packages of
this system have none. Get one, without root, with:

    curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv python install 3.13
${missing:+
and the rest with:

    sudo apt-get update && sudo apt-get install --yes$missing
}
Then start again. (A Python in another place: PYTHON=/path/to/python3.13 make ...)"
    fi
    [ -n "$missing" ] || return 0
    if ! can_install; then
        if have apt-get; then
            fail "This needs packages that are not installed. Get them with:

    sudo apt-get update && sudo apt-get install --yes$missing

and start again."
        fi
        fail "This needs what Debian calls:$missing
Install it the way this system does, and start again."
    fi
    say "Installing$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq $missing >&2 || {
        fail "Installing failed. What is needed:

    apt-get install$missing"
    }
}

# Tests start their own servers: the services of the packages are not needed
#
#   install_for_tests SERVER PACKAGE PATH UNIT...
install_for_tests() {
    server=$1 package=$2 path=$3
    shift 3
    [ ! -x "$path" ] || return 0
    if ! can_install; then
        say "The tests with $server will be skipped: get it with: sudo apt-get install --yes $package"
        return 0
    fi
    say "Installing $package"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq "$package" >&2 || {
        say "The tests with $server will be skipped: $package could not be installed"
        return 0
    }
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --quiet --now "$@" >&2 || true
    fi
}

# --------------------------------------------------------------------------------------------------------- the venv

find_missing
install_missing
if [ "$purpose" = test ]; then
    install_for_tests RabbitMQ rabbitmq-server /usr/lib/rabbitmq/bin/rabbitmq-server \
        rabbitmq-server.service epmd.socket epmd.service
    install_for_tests PgBouncer pgbouncer /usr/sbin/pgbouncer pgbouncer.service
fi
[ -n "$python" ] || find_python || fail "Python was installed, but is not found: $(candidates | tr '\n' ' ')"

# If two run in one checkout, the second waits for the first
if have flock; then
    exec 9>"$root/.venv.lock"
    flock 9
fi

wanted=$(cat pyproject.toml development/netbox_example_plugin/pyproject.toml | cksum)
if [ "$(cat "$venv/.complete" 2>/dev/null)" = "$wanted" ] && is_ours; then
    exit 0
fi
rm -f "$venv/.complete"
if ! is_ours; then
    say "Creating .venv with $("$python" --version) ($python)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    printf '%s\n' "$root" >"$venv/.place"
fi
say "Installing NetBox, the plugin and the development tools into .venv (a minute or two)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --editable '.[dev,neighbours]' --editable development/netbox_example_plugin
printf '%s\n' "$wanted" >"$venv/.complete"
