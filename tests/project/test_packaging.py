import importlib
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ledger", "projections", "routing")


def build(kind: str, into: Path) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(into), str(ROOT)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = into.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    return zipfile.Path(build("wheel", tmp_path_factory.mktemp("wheel")))


def test_wheel_holds_exactly_the_three_packages(wheel: zipfile.Path) -> None:
    """Installing adds three names to site-packages: no `scripts` or `tests` shadows the user's own."""
    members = {entry.name for entry in wheel.iterdir()}
    (dist_info,) = (name for name in members if name.endswith(".dist-info"))

    assert dist_info.startswith("allowance_ledger-")
    assert members - {dist_info} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_says_that_each_package_is_typed(wheel: zipfile.Path, package: str) -> None:
    """A user's type checker reads our annotations."""
    assert (wheel / package / "py.typed").is_file()
    assert (wheel / package / "__init__.py").is_file()


def test_wheel_brings_the_command(wheel: zipfile.Path) -> None:
    """Installing gives the command `allowance`."""
    (dist_info,) = (entry for entry in wheel.iterdir() if entry.name.endswith(".dist-info"))

    assert "allowance = routing.cli.main:main" in (dist_info / "entry_points.txt").read_text(encoding="utf-8")


def test_wheel_has_the_pages_of_the_guide(wheel: zipfile.Path) -> None:
    """`allowance guide` reads its pages from the installed package."""
    pages = {path.name for path in (ROOT / "routing" / "guide").glob("*.md")}

    assert pages
    assert {entry.name for entry in (wheel / "routing" / "guide").iterdir()} == pages


def test_sdist_holds_what_the_tests_need_and_nothing_made(tmp_path: Path) -> None:
    """From the sdist a packager can build, test and check; no environment, cache or ledger is in it."""
    with tarfile.open(build("sdist", tmp_path)) as sdist:
        members = {member.name.split("/")[1] for member in sdist.getmembers()}

    assert {*PACKAGES, "tests", "scripts", "requirements.lock", "LICENSE", "README.md"} <= members
    assert members <= {
        *PACKAGES,
        *("tests", "scripts", "requirements.lock", "LICENSE", "README.md"),
        *("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
        *("PKG-INFO", "pyproject.toml", ".gitignore"),
    }


SELDOM_WANTED = ("projections.audit", "projections.backup", "projections.rebuild", "ledger.store.export_file", "gzip")

WATCHED_IMPORT = """
import json, sys, threading

WATCHED = {
    "os.mkdir", "sqlite3.connect", "socket.__new__", "subprocess.Popen",
    "_thread.start_new_thread", "_thread.start_joinable_thread",
}
effects = []

def watch(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc")) or event in WATCHED:
        effects.append([event, repr(args[:1])])

sys.addaudithook(watch)
import routing
result = {"modules": list(sys.modules), "effects": list(effects), "threads": threading.active_count()}
print(json.dumps(result))
"""


def test_import_does_no_work() -> None:
    """`import routing` loads no database toolkit or driver, opens no file or socket, and starts no thread.

    Nor does it load what few ever ask for: audits, exports and the like come with the first name of theirs.
    """
    # -B: Python's own cache of compiled modules would count as files written.
    command = [sys.executable, "-B", "-c", WATCHED_IMPORT]
    watched = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    result = json.loads(watched.stdout)

    assert {"sqlalchemy", "aiosqlite", "asyncpg", "sqlite3"} & set(result["modules"]) == set()
    assert not [name for name in result["modules"] if name.startswith(SELDOM_WANTED)]
    assert result["effects"] == []
    assert result["threads"] == 1


def as_linted(name: str) -> tuple[int, str]:
    """The order that the linter keeps: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_sorted_and_there(package: str) -> None:
    """Every name in `__all__` can be imported, stands there once, and is found where one looks for it."""
    module = importlib.import_module(package)

    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(set(module.__all__)) == len(module.__all__)
    assert list(module.__all__) == sorted(module.__all__, key=as_linted)
