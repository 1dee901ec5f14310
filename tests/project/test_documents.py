"""The documents are true: their code runs, their links and names lead somewhere, and the guide omits nothing.

A comment before a code block changes how the block is tested:

    <!-- continues -->           a Python block that shares the namespace of the Python block before it
    <!-- not run: reason -->     a block that cannot run here, and why
    <!-- exits 1 -->             a console block whose commands end with this exit code instead of 0

All blocks of a page run in order, in one directory that holds the demo ledger of the guide. The demo's callers race
each other, so ids differ from run to run; the ids in the documents are replaced by those of the ledger at hand.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

import ledger.errors
from routing import Settings
from routing.cli.commands import COMMANDS
from routing.service.config import NOT_IN_ENVIRONMENT, configuration_from_environment, settings_from_environment

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDE = ROOT / "routing" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
INTERNAL = [path for path in DOCUMENTS if path.parent != GUIDE and path != README]
"""The documents for people who change the code; they name modules, classes and functions."""

README_LINES = 150
RUN_SECONDS = 120
SHORTEST_REASON = 10
DEMO = ["--miners", "12", "--blocks", "300", "--jobs", "300"]
VALIDATOR = "5FfiswEBon6fJ7XzrH6THSg2TJQEK9zE5YmbvRucACiUbm36"
SPENT_IN_DOCUMENTS = {
    "reservation_id": "409097163",
    "job_uuid": "e816cdb0-6b40-476b-89a5-731376404e97",
    "miner_ss58": "5FAKKDTp4DdAhkVTrDfR8HW2mRFTY2sStn7ohoFkzK3zfZ6X",
}
ACTIVE_IN_DOCUMENTS = ("517996544", "519045120")
EXECUTOR_CLASS = "always_on.gpu-24gb"

_block = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_link = re.compile(r"\]\((?P<link>[^)\s]+)\)|src=\"(?P<source>[^\"]+)\"")
_path_in_code = re.compile(r"`(?P<path>[\w./]+(?:\.py|\.md|/))`")
_name_in_code = re.compile(r"`(?P<path>[\w/]+\.py)`:\s+(?P<names>`[A-Za-z_.]+`(?:,\s+`[A-Za-z_.]+`)*)")
_export = re.compile(r"export (?P<name>\w+)=(?P<value>\S+)")
_heading = re.compile(r"^#+ (.*)$", re.MULTILINE)


def title(path: Path) -> str:
    """The name of a document in the output of the tests."""
    return str(path.relative_to(ROOT))


class Block(NamedTuple):
    """A fenced code block and the comment before it."""

    page: Path
    line: int
    note: str
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{title(self.page)}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why the block is not run; None if it is run."""
        return self.note.removeprefix("not run:").strip() if self.note.startswith("not run:") else None

    @property
    def exit_code(self) -> int:
        return int(self.note.removeprefix("exits ")) if self.note.startswith("exits ") else 0


class Console(NamedTuple):
    """A command of a console block, and the output that the document shows below it."""

    command: str
    output: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["note"] or "", found["language"], found["text"])
        for found in _block.finditer(text)
    ]


def scripts(page: Path) -> Iterator[Block]:
    """The blocks to run, in order; Python blocks that continue another are appended to that one."""
    wanted = [block for block in blocks(page) if block.language in ("python", "console") and block.reason is None]
    for index, block in enumerate(wanted):
        if block.note == "continues":
            continue
        text = block.text
        for later in [each for each in wanted[index + 1 :] if each.language == "python"]:
            if later.note != "continues" or block.language != "python":
                break
            text += later.text
        yield block._replace(text=text)


def commands(block: Block) -> list[Console]:
    first, *parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert first == "", f"{block.where}: a console block starts with `$ `"
    return [Console(*part.split("\n", 1)) for part in parts]


class DemoLedger(NamedTuple):
    """A directory with the demo ledger, and the values that replace those of the documents."""

    directory: Path
    examples: dict[str, str]
    environment: dict[str, str]

    def run(self, arguments: list[str], directory: Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments,
            cwd=directory,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoLedger:
    """The ledger that the guide makes, with two more reservations that nobody has settled."""
    programs = tmp_path_factory.mktemp("bin")
    allowance = programs / "allowance"
    allowance.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m routing.cli "$@"\n')
    allowance.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALLOWANCE_", "DEBUG_MINER_"))}
    environment = {
        **kept,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ALLOWANCE_DATABASE_URL": "sqlite:///demo.db",
        "ALLOWANCE_VALIDATOR_SS58": VALIDATOR,
    }
    made = DemoLedger(tmp_path_factory.mktemp("demo") / "ledger", {}, environment)
    made.run(["allowance", "demo", "--keep", str(made.directory), *DEMO], ROOT).check_returncode()
    history = made.run(
        ["allowance", "history", "--json", "--status", "spent", "--executor-class", EXECUTOR_CLASS], made.directory
    )
    spent = json.loads(history.stdout.splitlines()[0])
    made.examples.update({shown: str(spent[field]) for field, shown in SPENT_IN_DOCUMENTS.items()})
    for shown in ACTIVE_IN_DOCUMENTS:
        limits = {"download_time_limit": 1, "execution_time_limit": 5, "upload_time_limit": 1}
        request = {"uuid": f"job-of-{shown}", "executor_class": EXECUTOR_CLASS, **limits}
        (made.directory / "request.json").write_text(json.dumps(request))
        picked = made.run(["allowance", "pick", "request.json", "--json"], made.directory)
        made.examples[shown] = str(json.loads(picked.stdout)["allowance_reservation_id"])
    return made


def labels(output: str) -> list[list[str]]:
    """The parts of an output that no ledger changes: the names of its fields, and the headers of its tables."""
    found = []
    for line in output.splitlines():
        parts = re.split(r" {2,}", line)
        if line and not line.startswith(" "):
            found.append(parts if len(parts) > 2 else parts[:1])
    return found


def run_console(block: Block, demo: DemoLedger, directory: Path, exported: dict[str, str]) -> None:
    """Run the commands of a block; add the variables that it exports to `exported`, for later blocks of the page."""
    for documented in commands(block):
        command = documented.command
        for shown, actual in demo.examples.items():
            command = command.replace(shown, actual)
        # Each command has a shell of its own, in which an export would be lost for the commands after it.
        if export := _export.fullmatch(command.strip()):
            exported[export["name"]] = export["value"]
            continue
        ran = demo.run(["/bin/sh", "-c", command], directory, **exported)
        assert ran.returncode == block.exit_code, f"{block.where}: {command}\n{ran.stdout}{ran.stderr}"
        if documented.output.strip():
            assert labels(documented.output) == labels(ran.stdout), f"{block.where}: {command}"


def run_python(block: Block, demo: DemoLedger, directory: Path) -> None:
    script = directory / f"line_{block.line}.py"
    script.write_text(block.text)
    ran = demo.run([sys.executable, "-W", "error", script.name], directory)
    assert ran.returncode == 0, f"{block.where}\n{ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=title)
def test_every_code_block_runs(page: Path, demo: DemoLedger, tmp_path: Path) -> None:
    """A reader who copies a page's code, block after block, sees it work."""
    directory = tmp_path / "ledger"
    shutil.copytree(demo.directory, directory)
    exported: dict[str, str] = {}
    for block in scripts(page):
        if block.language == "python":
            run_python(block, demo, directory)
        else:
            run_console(block, demo, directory, exported)


@pytest.mark.parametrize("page", DOCUMENTS, ids=title)
def test_blocks_say_what_they_are(page: Path) -> None:
    """No code escapes the tests by an unknown language or comment; a block that is not run says why."""
    for block in blocks(page):
        assert block.language in ("python", "console", "json", "text"), block.where
        assert re.fullmatch(r"|continues|not run: .+|exits \d+", block.note), block.where
        assert block.reason is None or len(block.reason) >= SHORTEST_REASON, block.where
        if block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)


def test_the_first_example_runs_again_and_routes_a_job(demo: DemoLedger, tmp_path: Path) -> None:
    """Run in an empty directory, and run again on the ledger that it left, it routes a job and spends it."""
    (example,) = (block for block in scripts(README) if block.language == "python")
    (tmp_path / "example.py").write_text(example.text)
    for _ in range(2):
        ran = demo.run([sys.executable, "example.py"], tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert "5Miner" in ran.stdout
        assert "spent" in ran.stdout


@pytest.mark.slow
def test_the_first_example_passes_the_strictest_type_check(demo: DemoLedger, tmp_path: Path) -> None:
    """A user who checks types strictly can start from it."""
    (example,) = (block for block in scripts(README) if block.language == "python")
    (tmp_path / "example.py").write_text(example.text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "example.py"]
    ran = demo.run(command, tmp_path, MYPYPATH=str(ROOT))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_readme_is_short() -> None:
    """Everything longer belongs in the guide."""
    assert len(README.read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_page_begins_with_its_title(page: Path) -> None:
    """`allowance guide` lists the pages by their titles."""
    assert re.match(r"# \S", page.read_text())


def test_every_page_is_linked_from_the_readme() -> None:
    """A page that nobody can find does not exist."""
    links = {(README.parent / found["link"]).resolve() for found in _link.finditer(README.read_text()) if found["link"]}
    assert set(PAGES) <= links


@pytest.mark.parametrize("page", DOCUMENTS, ids=title)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Every relative link names a file of the repository, and a heading in it if it has a fragment."""
    for found in _link.finditer(page.read_text()):
        link = found["link"] or found["source"]
        if link.startswith(("https://", "http://")):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{title(page)}: {link}"
        if fragment:
            assert fragment in slugs(target), f"{title(page)}: {link}"


def slugs(page: Path) -> set[str]:
    """The fragments under which the headings of a page are linked."""
    return {
        re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in _heading.findall(page.read_text())
    }


@pytest.mark.parametrize("page", INTERNAL, ids=title)
def test_paths_in_the_text_exist(page: Path) -> None:
    """A module or folder that a document names is there, seen from the root or from the document's folder."""
    for found in _path_in_code.finditer(page.read_text()):
        path = found["path"]
        assert (ROOT / path).exists() or (page.parent / path).exists(), f"{title(page)}: {path}"


@pytest.mark.parametrize("page", INTERNAL, ids=title)
def test_names_in_the_text_exist(page: Path) -> None:
    """A class or function that a document names beside its module (`module.py`: `name`) is defined there."""
    for found in _name_in_code.finditer(page.read_text()):
        path = found["path"] if (ROOT / found["path"]).exists() else f"{page.parent.relative_to(ROOT)}/{found['path']}"
        module = import_module(path.removesuffix(".py").replace("/", "."))
        for name in re.findall(r"[A-Za-z_.]+", found["names"]):
            reduce(getattr, name.split("."), module)


@pytest.mark.parametrize("package", ["ledger", "projections", "routing"])
def test_every_module_is_in_the_readme_of_its_package(package: str) -> None:
    """A reader finds each module by its name, or by its folder if the README names no module of that folder."""
    folder = ROOT / package
    listed = {found["path"] for found in _path_in_code.finditer((folder / "README.md").read_text())}
    whole = {
        path for path in listed if path.endswith("/") and not any(other.startswith(path) for other in listed - {path})
    }
    modules = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if path.name != "__init__.py"}
    assert [path for path in sorted(modules - listed) if not any(path.startswith(each) for each in whole)] == []


def guide() -> str:
    return "".join(page.read_text() for page in PAGES)


@pytest.mark.parametrize("command", sorted(command.name for command in COMMANDS))
def test_every_command_is_in_the_guide(command: str) -> None:
    """A command that nobody can find does not exist."""
    assert re.search(rf"allowance {command}\b", guide())


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_is_in_the_guide_with_its_default(setting: object) -> None:
    """Each setting has a row: its name, its environment variable if it has one, and the default that the code has."""
    name = str(getattr(setting, "name", ""))
    factory = setting.default_factory  # type: ignore[attr-defined]
    default = setting.default if factory is MISSING else factory()  # type: ignore[attr-defined]
    shown = "none" if default in (None, {}) else str(default).lower()
    variable = "none" if name in NOT_IN_ENVIRONMENT else f"`ALLOWANCE_{name.upper()}`"
    row = f"| `{name}` | {variable} | {shown} |"
    assert row in (GUIDE / "settings.md").read_text()


class Environment(dict[str, str]):
    """An environment that notes which variables are asked for."""

    def __init__(self, **values: str) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)


def test_every_environment_variable_is_in_the_guide() -> None:
    """What the configuration reads is on the page of settings, and so is what turns off colours."""
    environment = Environment(DEBUG_MINER_KEY="5Debug")
    configuration_from_environment(environment)
    settings_from_environment(environment)
    assert len(environment.asked) > len(fields(Settings))
    text = (GUIDE / "settings.md").read_text()
    assert [name for name in sorted({*environment.asked, "NO_COLOR"}) if f"`{name}`" not in text] == []


def error_sections() -> dict[str, str]:
    """The sections of the page of errors by the class that they describe."""
    parts = re.split(r"^##+ (\w+)$", (GUIDE / "errors.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_of_errors_has_every_error_and_no_other() -> None:
    """Whatever is raised, a reader finds its meaning there."""
    assert set(error_sections()) == set(ledger.errors.__all__)


@pytest.mark.parametrize("name", [name for name in ledger.errors.__all__ if name in error_sections()])
def test_the_page_of_errors_lists_the_fields(name: str) -> None:
    """The fields of an error, those that it inherits included, are the ones that the page lists."""
    classes = [kind for kind in getattr(ledger.errors, name).__mro__ if kind.__module__ == ledger.errors.__name__]
    assigned = {field for kind in classes for field in re.findall(r"self\.(\w+) =", inspect.getsource(kind))}
    listed = re.search(r"Fields: (.*?)\.\s", error_sections()[name], re.DOTALL)
    assert assigned - {"args"} == (set(re.findall(r"`(\w+)`", listed[1])) if listed else set())
