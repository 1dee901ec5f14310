"""What is published: the sdist and the wheel, their contents and metadata; and what importing the packages costs."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import routing

ROOT = Path(__file__).parents[2]
PACKAGES = ("ledger", "projections", "routing")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.db")


def run(*command: str | Path, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command that must succeed; return its output."""
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=cwd)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def build(kind: str, into: Path, root: Path = ROOT) -> Path:
    """Build an sdist or a wheel of a checkout; return the archive."""
    # A date of its own, since the library's default would hide that the variable is ignored.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = (sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(into), str(root))
    run(*command, environment=environment)
    (archive,) = into.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.Path:
    return zipfile.Path(wheel_file)


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


def test_sdist_holds_what_the_tests_need_and_nothing_made(sdist_file: Path) -> None:
    """From the sdist a packager can build, test and check; no environment, cache or ledger is in it."""
    with tarfile.open(sdist_file) as sdist:
        members = {member.name.split("/")[1] for member in sdist.getmembers()}

    assert {*PACKAGES, "tests", "scripts", "requirements.lock", "LICENSE", "README.md"} <= members
    assert members <= {
        *PACKAGES,
        *("tests", "scripts", "requirements.lock", "LICENSE", "README.md"),
        *("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
        *("PKG-INFO", "pyproject.toml", ".gitignore"),
    }


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes(wheel_file: Path, sdist_file: Path, tmp_path: Path) -> None:
    """Anybody can build a release again and compare its hashes.

    The second build is made in a copy elsewhere, whose files have other dates and rights, and the wheel is built from
    the sdist. Catches dates, paths and file modes that get into the archives, and files that the sdist lacks.
    """
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED, copy_function=copy_privately)
    shutil.copy(ROOT / ".gitignore", copy)
    again = build("sdist", tmp_path / "sdist", copy)
    with tarfile.open(again) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    assert again.name == sdist_file.name
    assert again.read_bytes() == sdist_file.read_bytes()
    assert build("wheel", tmp_path / "wheel", unpacked).read_bytes() == wheel_file.read_bytes()


@pytest.mark.slow
def test_what_is_published_passes_the_checks_of_the_index(wheel_file: Path, sdist_file: Path) -> None:
    """An index shows the description as it stands, and accepts the metadata."""
    if find_spec("twine") is None:
        pytest.skip("twine is not installed: it belongs to the extra integrations")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel_file, sdist_file)


def test_metadata_leads_to_the_project(wheel: zipfile.Path) -> None:
    """Licence, keywords and links are those of pyproject.toml, the version that of the code; no link lacks a target."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (dist_info,) = (entry for entry in wheel.iterdir() if entry.name.endswith(".dist-info"))
    metadata = (dist_info / "METADATA").read_text(encoding="utf-8")

    assert f"\nVersion: {routing.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} == set(project["urls"])
    for name, url in project["urls"].items():
        assert f"\nProject-URL: {name}, {url}\n" in metadata
        # A link into the repository names a file or folder that is there.
        path = re.match(r"https://[^/]+/[^/]+/[^/]+/(?:blob|tree)/main/(.+)", url)
        assert path is None or (ROOT / path[1]).exists()
    assert set(project["keywords"]) == set(re.search(r"\nKeywords: (.+)\n", metadata)[1].split(","))  # type: ignore[index]


def copy_privately(source: str, target: str) -> None:
    """Copy a file as somebody with another umask would have it, and with today's date; only git's bit stays."""
    shutil.copyfile(source, target)
    os.chmod(target, 0o700 if os.access(source, os.X_OK) else 0o600)


def core_distributions(requirements: list[str]) -> set[str]:
    """Return the names of the installed distributions that these requirements need, with their extras."""
    found: set[str] = set()
    for text in requirements:
        requirement = Requirement(text)
        extras = [{"extra": extra} for extra in ("", *requirement.extras)]
        needed = distribution(requirement.name)
        found.add(needed.name)
        wanted = [
            each
            for each in needed.requires or ()
            if (marker := Requirement(each).marker) is None or any(map(marker.evaluate, extras))
        ]
        found |= core_distributions([each for each in wanted if Requirement(each).name not in found])
    return found


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment_with_the_core_alone(wheel_file: Path, tmp_path: Path) -> None:
    """`pip install --require-hashes` and `allowance demo` work with nothing but the core's dependencies.

    Catches an import of a package that only an extra installs, and a file that the wheel lacks. The dependencies are
    copied from this environment, so that the test needs no package index.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    fresh = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", fresh)
    python, allowance = fresh / "bin" / "python", fresh / "bin" / "allowance"
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    for name in core_distributions(project["dependencies"]):
        copy_distribution(name, site)
    digest = hashlib.sha256(wheel_file.read_bytes()).hexdigest()
    pinned = tmp_path / "requirements.txt"
    pinned.write_text(f"allowance-ledger @ {wheel_file.as_uri()} --hash=sha256:{digest}\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--isolated")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--require-hashes", "-r", pinned)
    run(*pip, "check")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    database = ("--json", "--database", f"sqlite:///{tmp_path}/demo.db")
    demo = (allowance, "demo", "--miners", "4", "--blocks", "40", "--jobs", "20", *database)
    run(*demo, environment=environment, cwd=tmp_path)
    report = run(allowance, "audit", *database, environment=environment, cwd=tmp_path)
    assert json.loads(report)["findings"] == []


def copy_distribution(name: str, site: Path) -> None:
    """Copy an installed distribution into another environment."""
    for file in distribution(name).files or ():
        # Not the scripts, which are outside of the directory of packages.
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)


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
