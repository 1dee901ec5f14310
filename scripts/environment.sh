# Sourced by the other scripts of this directory. They call `use_environment`, which makes the clone's own .venv if it is
# missing or stale, and puts its commands first on PATH.
#
# requirements.lock pins and hashes everything that is installed, the build backend included. A stale environment is made
# anew, never repaired. Its stamp is written last, so an interrupted installation never looks finished. The stamp covers
# the path of the clone too, because virtual environments cannot be moved.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$@"; exit 1; }

# Set base_python to the real interpreter, also if python3 is a shim or belongs to the .venv that is to be replaced.
find_python() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "$python not found: install Python 3.11 or newer, or name one with PYTHON=..."
    base_python=$("$python" -c '
import os, sys
if sys.version_info < (3, 11):
    sys.exit("%s is Python %d.%d; 3.11 or newer is needed: name one with PYTHON=..." % ((sys.executable,) + sys.version_info[:2]))
try:
    import ensurepip, venv
except ImportError:
    sys.exit("%s cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" % sys.executable)
print(os.path.realpath(sys.executable))
') || exit 1
}

# real_interpreter COMMAND: print the interpreter behind a command, if it runs and can make virtual environments.
real_interpreter() {
    "$1" -c 'import ensurepip, os, sys, venv; print(os.path.realpath(sys.executable))' 2>/dev/null
}

# find_other_python VERSION: set base_python to a Python of this minor version; fail if the machine has none.
# pyenv puts a shim on PATH for every version that it knows, but the shim refuses to run unless the version is selected.
find_other_python() {
    local version=$1 installed
    base_python=$(real_interpreter "python$version") && return
    command -v pyenv >/dev/null || return 1
    installed=$(pyenv versions --bare | grep "^${version//./\\.}\.[0-9]*$" | sort -V | tail -n 1)
    [[ -n $installed ]] && base_python=$(PYENV_VERSION=$installed real_interpreter "python$version")
}

# stamp FILE...: a digest of these files, the interpreter and the path of the clone.
stamp() {
    "$base_python" -c '
import hashlib, pathlib, sys
files = [pathlib.Path(name).read_bytes() for name in sys.argv[2:]]
print(hashlib.sha256(repr((sys.version, sys.executable, sys.argv[1], files)).encode()).hexdigest())
' "$root" "$@"
}

# ensure DIRECTORY MAKE FILE...: call MAKE for the directory unless it was made from exactly these files.
ensure() {
    local directory=$1 make=$2 wanted
    shift 2
    wanted=$(stamp "$@")
    # One script at a time makes environments. The lock belongs to the open file on descriptor 9, so it outlives the
    # interpreter that requests it and ends with this script, however that ends. macOS has no flock command.
    exec 9>>"$root/.venv.lock"
    "$base_python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if [[ ! -f $directory/.stamp || $(<"$directory/.stamp") != "$wanted" ]]; then
        say "making ${directory##*/}"
        rm -rf "$directory"
        "$make" "$directory"
        printf '%s\n' "$wanted" >"$directory/.stamp"
    fi
    exec 9>&-
}

# pip_install ENVIRONMENT ARGUMENT...
pip_install() {
    local environment=$1
    shift
    "$environment/bin/python" -m pip install -qq --disable-pip-version-check --no-input --no-deps "$@" ||
        fail "the installation failed, see the message above; it needs a package index"
}

make_environment() {
    "$base_python" -m venv "$1"
    pip_install "$1" --require-hashes -r "$root/requirements.lock"
    pip_install "$1" --no-build-isolation -e "$root"
    "$1/bin/python" -m pip --disable-pip-version-check check >/dev/null ||
        fail "requirements.lock does not fit pyproject.toml: run scripts/lock"
}

# activate DIRECTORY: make the environment if necessary, and put its commands first on PATH.
activate() {
    ensure "$1" make_environment "$root/pyproject.toml" "$root/requirements.lock"
    export PATH="$1/bin:$PATH"
}

# install_system_packages: install what some tests need from the system's packages, if that is allowed: strace lets system
# calls fail, PgBouncer pools connections, Chromium shows the pages of `allowance serve`. Tests that find one missing say that they were skipped, and why.
install_system_packages() {
    local missing=()
    command -v strace >/dev/null || missing+=(strace)
    PATH="$PATH:/usr/sbin" command -v pgbouncer >/dev/null || missing+=(pgbouncer)
    command -v chromium >/dev/null || missing+=(chromium)
    ((${#missing[@]} > 0)) && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 0
    say "installing ${missing[*]}"
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 ||
        say "${missing[*]} could not be installed; the tests that need them will be skipped"
}

use_environment() {
    find_python
    activate "$root/.venv"
}

# use_integrations: add to .venv what only the checks and the whole suite need, so that the demo need not install it.
# The stamp is inside of .venv, so it goes with it.
use_integrations() {
    ensure "$root/.venv/.integrations" install_integrations "$root/pyproject.toml" "$root/scripts/integrations.lock"
}

install_integrations() {
    mkdir -p "$1"
    pip_install "$root/.venv" --require-hashes -r "$root/scripts/integrations.lock"
}

# use_other_environment VERSION: like use_environment, with the Python that find_other_python has found.
use_other_environment() {
    activate "$root/.venv-py${1//./}"
}

# Only our direct dependencies, in the lowest versions that pyproject.toml allows. They go into a directory that
# PYTHONPATH puts before .venv: everything else stays the same, and no second environment is needed.
make_lowest() {
    pip_install "$root/.venv" --require-hashes --target "$1" -r "$root/scripts/lowest.lock"
}

use_lowest() {
    ensure "$root/.venv-lowest" make_lowest "$root/scripts/lowest.lock"
    export PYTHONPATH="$root/.venv-lowest${PYTHONPATH:+:$PYTHONPATH}"
}
