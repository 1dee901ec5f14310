"""`allowance guide`: the pages of the user guide, which are shipped with the package."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from typing import NamedTuple

from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongUsage
from routing.cli.io.output import Output

SUFFIX = ".md"
# Comments before code blocks, such as `<!-- continues -->`, say how the project's tests run a block; readers do not
# need them.
_TEST_MARK = re.compile(r"^<!-- .* -->\n", re.MULTILINE)


class GuidePage(NamedTuple):
    """A page: its topic is the file's name without `.md`, its title the first heading.

    The text is that of the file, without the marks for tests.
    """

    topic: str
    title: str
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the topic."""
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="the page to show; without it, the topics are listed")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Show one page, or list all."""
    pages = _pages()
    if arguments.topic is None:
        _list(pages, out)
    else:
        _show(_page(arguments.topic, pages), out)
    return 0


def _pages() -> list[GuidePage]:
    # Not by file path: an installed package may be inside a zip archive.
    folder = files("routing") / "guide"
    found = [each for each in folder.iterdir() if each.name.endswith(SUFFIX)]
    texts = {each.name.removesuffix(SUFFIX): _TEST_MARK.sub("", each.read_text(encoding="utf-8")) for each in found}
    return [GuidePage(topic, _title(topic, text), text) for topic, text in sorted(texts.items())]


def _title(topic: str, text: str) -> str:
    headings = (line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next(headings, topic)


def _page(topic: str, pages: list[GuidePage]) -> GuidePage:
    # The topic is looked up among the pages and never becomes a part of a path.
    for page in pages:
        if page.topic == topic:
            return page
    raise WrongUsage(f"the guide has no topic {topic!r}; topics: {', '.join(page.topic for page in pages)}")


def _list(pages: list[GuidePage], out: Output) -> None:
    if out.json_wanted:
        for page in pages:
            out.document({"topic": page.topic, "title": page.title})
        return
    out.table(("topic", "title"), [(page.topic, page.title) for page in pages])
    out.next_step("`allowance guide getting-started` begins at the beginning")


def _show(page: GuidePage, out: Output) -> None:
    if out.json_wanted:
        out.document(page._asdict())
    else:
        out.line(page.text.rstrip("\n"))


COMMAND = CliCommand(
    details="The pages are Markdown and are installed with the package. This command needs no database.",
    examples=(
        "allowance guide",
        "allowance guide getting-started",
        "allowance guide getting-started --json | jq -r .text",
    ),
    add_arguments=add_arguments,
    run=run,
)
