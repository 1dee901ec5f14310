"""What is shipped, what an import loads, and which names each package exports."""

import ast
import importlib
import json
import pkgutil
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


def test_wheel_has_the_pages_of_the_guide(wheel: zipfile.Path) -> None:
    """`allowance guide` reads its pages from the installed package."""
    pages = {path.name for path in (ROOT / "routing" / "guide").glob("*.md")}

    assert pages
    assert {entry.name for entry in (wheel / "routing" / "guide").iterdir()} == pages


def test_wheel_brings_the_command(wheel: zipfile.Path) -> None:
    """Installing gives the command `allowance`."""
    (dist_info,) = (entry for entry in wheel.iterdir() if entry.name.endswith(".dist-info"))

    assert "allowance = routing.cli.main:main" in (dist_info / "entry_points.txt").read_text(encoding="utf-8")


def test_wheel_brings_the_guide(wheel: zipfile.Path) -> None:
    """`allowance guide` shows the pages of an installed package, so each of them ships."""
    pages = {page.name for page in (ROOT / "routing" / "guide").glob("*.md")}

    assert pages
    assert pages <= {entry.name for entry in (wheel / "routing" / "guide").iterdir()}


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


OWN_MODULES_AT_IMPORT = {"ledger", "ledger.lazy_exports", "routing"}
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
routing.Routing(routing.Allowance.open("sqlite://", validator_ss58="5Validator"))
result["modules of a router"] = list(sys.modules)
print(json.dumps(result))
"""


def test_import_does_no_work() -> None:
    """`import routing` loads neither asyncio nor msgspec nor a database driver, opens no file and starts no thread.

    The module of a name is loaded when that name is first used. The names that every router needs do not load the
    modules that few processes need: audits, exports and rebuilds.
    """
    # -B: Python's own cache of compiled modules would count as files written.
    command = [sys.executable, "-B", "-c", WATCHED_IMPORT]
    watched = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    result = json.loads(watched.stdout)

    assert {"asyncio", "msgspec", "sqlalchemy", "aiosqlite", "asyncpg", "sqlite3"} & set(result["modules"]) == set()
    assert {name for name in result["modules"] if name.startswith(PACKAGES)} == OWN_MODULES_AT_IMPORT
    assert [name for name in result["modules of a router"] if name.startswith(SELDOM_WANTED)] == []
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


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_and_star_import_give_the_exported_names(package: str) -> None:
    """Lazy names are visible where a user looks for them: in `dir()`, and after `from package import *`."""
    module = importlib.import_module(package)
    imported: dict[str, object] = {}
    exec(f"from {package} import *", imported)

    assert set(module.__all__) <= set(dir(module))
    assert set(module.__all__) <= set(imported)


def exports_of(package: str) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """The (module, name) pairs that a package's `__init__` shows to type checkers, and those that it loads lazily."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    (condition,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = set()
    for imported in condition.body:
        assert isinstance(imported, ast.ImportFrom)
        module = f"{package}.{imported.module}" if imported.level else str(imported.module)
        for alias in imported.names:
            assert alias.asname == alias.name, "only `import X as X` is a re-export for a type checker"
            typed.add((module, alias.name))
    (assignment,) = condition.orelse
    assert isinstance(assignment, ast.Assign)
    assert isinstance(assignment.value, ast.Call)
    modules = ast.literal_eval(assignment.value.args[1])
    return typed, {(module, name) for module, names in modules.items() for name in names.split()}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_type_checker_sees_the_names_that_are_loaded(package: str) -> None:
    """Each name is listed twice, and both lists have the same names from the same modules."""
    typed, lazy = exports_of(package)

    assert typed == lazy


@pytest.mark.parametrize("package", PACKAGES)
def test_no_exported_name_is_a_submodules_name(package: str) -> None:
    """Importing a submodule sets its name on the package, and would replace the exported object."""
    module = importlib.import_module(package)

    assert {each.name for each in pkgutil.iter_modules(module.__path__)} & set(module.__all__) == set()


def test_ledger_exports_only_what_the_other_packages_use() -> None:
    """At most 60 names, each imported by `projections` or `routing`: more would be no interface."""
    used = {
        alias.name
        for package in ("projections", "routing")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "ledger" and not node.level
        for alias in node.names
    }
    exported = {name for _, name in exports_of("ledger")[1]}

    assert exported - used == set()
    assert len(exported) <= 60
