# Sourced by the scripts beside it, which then call `use_environment`: it makes the clone's own .venv where that is
# missing or stale, and puts its commands first on PATH.
#
# Everything installed is pinned and hashed by requirements.lock, the build backend included. An environment is made
# anew, never repaired: its stamp, written last, tells whether it was finished, and from what. The place counts too,
# since virtual environments cannot be moved.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$@"; exit 1; }

# Sets base_python: the interpreter itself, also where python3 is a shim or belongs to the .venv about to be replaced.
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

# stamp FILE...: a digest of these files, the interpreter and the place.
stamp() {
    "$base_python" -c '
import hashlib, pathlib, sys
files = [pathlib.Path(name).read_bytes() for name in sys.argv[2:]]
print(hashlib.sha256(repr((sys.version, sys.executable, sys.argv[1], files)).encode()).hexdigest())
' "$root" "$@"
}

# ensure DIRECTORY MAKE FILE...: calls MAKE for the directory unless it was made from just these files.
ensure() {
    local directory=$1 make=$2 wanted
    shift 2
    wanted=$(stamp "$@")
    # A lock on descriptor 9 belongs to the open file, so it outlasts the interpreter that takes it and goes with this
    # script, however that ends. It asks for no flock command, which macOS lacks.
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

pip_install() {
    "$root/.venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --no-deps "$@" ||
        fail "the install failed, as said above; it needs a package index within reach"
}

make_environment() {
    "$base_python" -m venv "$1"
    pip_install --require-hashes -r "$root/requirements.lock"
    pip_install --no-build-isolation -e "$root"
    "$1/bin/python" -m pip --disable-pip-version-check check >/dev/null ||
        fail "requirements.lock lags behind pyproject.toml: run scripts/lock"
}

use_environment() {
    find_python
    ensure "$root/.venv" make_environment "$root/pyproject.toml" "$root/requirements.lock"
    export PATH="$root/.venv/bin:$PATH"
}

# The older SQLAlchemy alone, to be laid over .venv through PYTHONPATH: everything else stays the same.
make_sqlalchemy20() {
    pip_install --require-hashes --target "$1" -r "$root/scripts/sqlalchemy20.lock"
}

use_sqlalchemy20() {
    ensure "$root/.venv-sqlalchemy20" make_sqlalchemy20 "$root/scripts/sqlalchemy20.lock"
    export PYTHONPATH="$root/.venv-sqlalchemy20${PYTHONPATH:+:$PYTHONPATH}"
}
