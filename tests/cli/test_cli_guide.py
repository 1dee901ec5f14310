"""`allowance guide`: the pages that are shipped, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import pytest

import routing
from tests.support.cli import Command, command_line

FOLDER = Path(routing.__file__).parent / "guide"
TOPICS = sorted(path.stem for path in FOLDER.glob("*.md"))


@pytest.fixture
def allowance(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `allowance`, which needs no ledger here."""
    return command_line(capsys)


def text_of(topic: str) -> str:
    """Return the text of a page as users read it: without the comments that mark code blocks for tests."""
    lines = (FOLDER / f"{topic}.md").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("<!--"))


def test_guide_lists_every_topic_with_its_title(allowance: Command) -> None:
    """Without a topic, each page is a row with its first heading."""
    result = allowance("guide")

    assert (result.code, result.err) == (0, "")
    header, *rows = result.out.splitlines()
    assert header.split() == ["topic", "title"]
    assert [row.split()[0] for row in rows] == TOPICS
    for topic, row in zip(TOPICS, rows, strict=True):
        assert text_of(topic).splitlines()[0] == f"# {row.split(maxsplit=1)[1]}"


def test_guide_lists_topics_as_json(allowance: Command) -> None:
    """With `--json`, each topic is a document on a line of its own."""
    documents = allowance("guide", "--json").documents

    assert [document["topic"] for document in documents] == TOPICS
    assert all(document.keys() == {"topic", "title"} for document in documents)


@pytest.mark.parametrize("topic", TOPICS)
def test_guide_prints_a_page(allowance: Command, topic: str) -> None:
    """A topic prints its page as it is in the file, except the marks for tests."""
    result = allowance("guide", topic)

    assert (result.code, result.err) == (0, "")
    assert result.out == text_of(topic).rstrip("\n") + "\n"


def test_guide_prints_no_marks_for_tests(allowance: Command) -> None:
    """The file marks code blocks with comments, such as `<!-- continues -->`; the page shows the blocks alone."""
    marked = (FOLDER / "getting-started.md").read_text(encoding="utf-8")
    assert "stake:\n\n<!-- continues -->\n```python\n" in marked

    result = allowance("guide", "getting-started")

    assert "stake:\n\n```python\n" in result.out
    assert "<!--" not in result.out
    assert "<!--" not in allowance("guide", "getting-started", "--json").document["text"]


@pytest.mark.parametrize("topic", TOPICS)
def test_guide_prints_a_page_as_json(allowance: Command, topic: str) -> None:
    """The document has the topic, the title and the whole text."""
    (document,) = allowance("guide", topic, "--json").documents

    assert document == {
        "topic": topic,
        "title": text_of(topic).splitlines()[0].removeprefix("# "),
        "text": text_of(topic),
    }


@pytest.mark.parametrize(
    "topic", ["no-such-topic", "Getting-Started", "getting-started.md", "../cli/main", "/etc/passwd"]
)
def test_an_unknown_topic_is_refused_with_the_list(allowance: Command, topic: str) -> None:
    """Exit code 2, and the error lists all topics; a path is no topic.

    Catches: a topic that becomes a path, and so prints any file.
    """
    result = allowance("guide", topic)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"allowance: WrongUsage: the guide has no topic {topic!r}; topics: {', '.join(TOPICS)}\n"

    (document,) = allowance("guide", topic, "--json").documents
    assert document["error"]["type"] == "WrongUsage"


def test_an_empty_topic_is_refused(allowance: Command) -> None:
    """`allowance guide "$TOPIC"` with an unset variable does not list the topics."""
    result = allowance("guide", "")

    assert result.code == 2
    assert "argument TOPIC: is empty" in result.err


def test_guide_needs_no_database(allowance: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wrong settings of the database do not keep anybody from reading how to correct them."""
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", "nonsense")
    monkeypatch.setenv("ALLOWANCE_LONGEST_JOB_SECONDS", "long")
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58", raising=False)
    monkeypatch.chdir(tmp_path)

    assert allowance("guide").code == 0
    assert allowance("guide", "getting-started").code == 0
    assert list(tmp_path.iterdir()) == []
