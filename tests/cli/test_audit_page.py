"""The audit's page: whole, self-contained, true to the report, and deaf to what strangers wrote into the log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from routing import RULES, AccountTotals, AccountUsage, Allowance, AuditReport, BlockUsage, Finding
from routing.cli.audit_page import page
from routing.cli.audit_page.markup import Markup, element
from routing.cli.audit_page.style import STYLE
from routing.cli.audit_page.svg import HEIGHT, SPARK_HEIGHT, SPARK_WIDTH, WIDTH, Layer, chart, ticks
from tests.support.small import GPU, VALIDATOR, Clock, small_ledger
from tests.support.stories import Story, seed_shown

HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J\"'&"
SHOWN = "<script>alert(1)</script>\\u202e\\x1b[2J\"'&"
STATES = ("spent", "held", "invalidated", "free")
READABLE = 4.5
"""The least contrast at which small text is easy to read, by the Web Content Accessibility Guidelines."""
TOLD_APART = 1.5
"""A ratio of lightness at which two colours are told apart without their hue."""


def parsed(text: str) -> ElementTree.Element:
    """The page as a tree; XML, so that whatever is not closed, quoted or escaped fails."""
    declaration, document = text.split("\n", 1)
    assert declaration == "<!doctype html>"
    return ElementTree.fromstring(document)


def words(tree: ElementTree.Element, tag: str = "*") -> list[str]:
    """What each element says, its children included."""
    return ["".join(each.itertext()) for each in tree.iter(None if tag == "*" else tag)]


def cells(tree: ElementTree.Element, caption: str) -> list[list[str]]:
    """The rows of the tables of that caption."""
    return [
        ["".join(cell.itertext()) for cell in row]
        for table in tree.iter("table")
        if table.findtext("caption") == caption
        for row in table.iterfind("tbody/tr")
    ]


def a_report(accounts: list[AccountUsage], starts: list[int], **fields: Any) -> AuditReport:
    totals = [
        AccountTotals(
            each.miner_ss58,
            each.executor_class,
            sum(each.granted),
            sum(each.spent),
            sum(each.held),
            sum(each.invalidated),
            sum(each.granted) - sum(each.spent) - sum(each.held) - sum(each.invalidated),
            0.0,
        )
        for each in accounts
    ]
    given: dict[str, Any] = {
        "validator_ss58": "5Validator",
        "position": 7,
        "head_hash": "ab" * 32,
        "findings": [],
        "findings_count": 0,
        "events": {"block-recorded": 7},
        "totals": totals,
        "history_position": 7,
        "elapsed_seconds": 0.5,
        "events_per_second": 14.0,
        "usage": BlockUsage(starts, accounts),
        "snapshots": 1,
        "live_state": True,
    }
    return AuditReport(**{**given, **fields})


def network(miners: int, classes: int, buckets: int) -> tuple[list[AccountUsage], list[int]]:
    """Accounts that use their allowance unevenly."""
    starts = [1 + 10 * place for place in range(buckets + 1)]
    accounts = [
        AccountUsage(
            f"5{'Miner' * 9}{number:02}",
            f"class-{name}",
            [120.0] * buckets,
            [float((place * number) % 90) for place in range(buckets)],
            [float(place % 11) for place in range(buckets)],
            [float((place + number) % 7) for place in range(buckets)],
        )
        for number in range(miners)
        for name in range(classes)
    ]
    return accounts, starts


def test_the_page_needs_nothing_but_itself() -> None:
    """No element or attribute that a browser would follow, no script, and a policy that forbids both.

    Catches a page that shows nothing without a network, or that tells somebody that it was opened.
    """
    text = page(a_report(*network(3, 2, 12)))
    tree = parsed(text)
    followed = {"link", "script", "img", "image", "iframe", "object", "embed", "base", "use", "a", "form"}
    assert not followed & {each.tag for each in tree.iter()}
    names = {name for each in tree.iter() for name in each.attrib}
    assert not {"src", "href", "srcset", "action", "data", "style"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"url\(|@import|//", text)
    policies = [each.get("content") for each in tree.iter("meta") if each.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert len(list(tree.iter("figure"))) == 1 + 2


def test_what_is_not_markup_is_escaped() -> None:
    """A string becomes part of a page as text, in an element as in an attribute, unless its type says otherwise."""
    assert element("p", "<b>", class_='">') == '<p class="&quot;&gt;">&lt;b&gt;</p>'
    assert element("p", Markup("<b></b>"), "\u202e\n") == "<p><b></b>\\u202e\\n</p>"
    assert element("p", "", class_="") == "<p></p>"


def test_what_stands_in_the_log_stays_text() -> None:
    """Names and messages that would be tags, or would turn the reading direction, are shown and do nothing.

    Catches a place where a name enters the page unescaped.
    """
    accounts, starts = network(1, 1, 2)
    hostile = AccountUsage(HOSTILE, HOSTILE, *([1.0, 2.0] for _ in range(4)))
    finding = Finding(3, HOSTILE, HOSTILE, {HOSTILE: HOSTILE, "list": [HOSTILE], "dict": {HOSTILE: None}})
    report = a_report(
        [*accounts, hostile],
        starts,
        validator_ss58=HOSTILE,
        head_hash=HOSTILE,
        events={HOSTILE: 1},
        findings=[finding],
        findings_count=1,
    )
    text = page(report)
    tree = parsed(text)
    assert "script" not in {each.tag for each in tree.iter()}
    assert not {"\u202e", "\x1b"} & set(text)
    isolated = words(tree, "bdi")
    for place in ("validator", "head", "type", "rule", "rule", "message", "name", "value", "total", "chart", "miner"):
        assert SHOWN in isolated, place
        isolated.remove(SHOWN)


def test_every_finding_is_told() -> None:
    """By position, with the rule and the details; those beyond the first fifty are in the page too, folded away."""
    rules = list(RULES)
    details = {"blocks": [1, 2], "account": "5Miner", "none": None}
    findings = [Finding(n + 1, rules[n % len(rules)].value, f"message {n}", {**details, "n": n}) for n in range(120)]
    tree = parsed(page(a_report(*network(1, 1, 3), findings=findings, findings_count=120)))
    rows = cells(tree, "Findings") + cells(tree, "More findings")
    assert rows == [
        [f"{n + 1:,}", rules[n % len(rules)].value, f"message {n}", f"blocks: [1, 2]account: 5Minernone: nulln: {n}"]
        for n in range(120)
    ]
    assert [len(cells(tree, caption)) for caption in ("Findings", "More findings")] == [50, 70]
    assert "✗ 120 findings in 7 events" in words(tree, "p")
    assert "70 more findings" in words(tree, "summary")


def test_each_rule_says_whether_it_holds() -> None:
    """Broken with how often, holding, or not known: where nothing was there to compare, or not all findings are told.

    Catches a tick for a rule whose findings were only counted.
    """
    findings = [Finding(4, "hash-chain", "wrong", {}), Finding(9, "hash-chain", "wrong", {})]

    def holds(**fields: Any) -> dict[str, str]:
        rows = cells(parsed(page(a_report([], [], **fields))), "Rules")
        assert [[rule, demand] for _, rule, demand in rows] == [[rule.value, RULES[rule]] for rule in RULES]
        return {rule: mark for mark, rule, _ in rows}

    assert set(holds().values()) == {"✓"}
    broken = holds(findings=findings, findings_count=2)
    assert broken.pop("hash-chain") == "✗ 2 findings"
    assert set(broken.values()) == {"✓"}
    assert holds(findings=findings, findings_count=3)["head-row"] == "not known"
    uncompared = holds(history_position=None, snapshots=0, live_state=False)
    assert {uncompared.pop(rule) for rule in ("history-model", "snapshots", "live-state")} == {"not known"}
    assert set(uncompared.values()) == {"✓"}


def test_broken_rules_are_summed_up() -> None:
    """Above the findings, each broken rule once: how often, where first, and what it demands."""
    findings = [Finding(n, rule, "wrong", {}) for n, rule in enumerate(["keys-once", "due-time", "due-time"], start=5)]
    tree = parsed(page(a_report([], [], findings=findings, findings_count=20_000)))
    assert [row[:3] for row in cells(tree, "Broken rules")] == [["2", "6", "due-time"], ["1", "5", "keys-once"]]
    assert "20,000 findings, of which the first 3 are listed, by position in the log." in words(tree, "p")


@pytest.mark.parametrize("usage", [None, BlockUsage([], []), BlockUsage([1, 2], [])])
def test_a_report_of_nothing_has_a_page(usage: BlockUsage | None) -> None:
    """Nothing granted, no accounts, or no usage asked for: no chart fails."""
    tree = parsed(page(a_report([], [], usage=usage, events={}, position=0)))
    assert "✓ No finding in 0 events" in words(tree, "p")
    assert not list(tree.iter("figure"))


@pytest.mark.parametrize("blocks", [0, 1, 2])
async def test_a_new_ledger_has_a_page(blocks: int) -> None:
    """Empty, with one block, which is not finalized, and with two, of which one is."""
    async with small_ledger(blocks=blocks) as ledger:
        report = await ledger.audit(usage_buckets=120)
    figures = [figure.findtext("figcaption/h3/bdi") for figure in parsed(page(report)).iter("figure")]
    assert figures == (["All classes", GPU] if blocks > 1 else [])


async def test_the_page_of_a_ledger_tells_its_totals() -> None:
    """Over a real ledger, what the charts' keys, their steps and the tables say comes to the audit's totals."""
    seed = 7
    with seed_shown(seed):
        clock = Clock()
        async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
            await Story(ledger, clock, seed).goes_on(400)
            report = await ledger.audit(usage_buckets=13)
        tree = parsed(page(report))
        for name, place in (("granted", 2), ("spent", 3), ("held", 4), ("invalidated", 5)):
            total = sum(getattr(each, f"{name}_seconds") for each in report.totals)
            assert total > 0
            assert cells(tree, "Totals by executor class")[-1][place] == f"{total:,.3f}"
            assert f"{name} {total:,.3f} s" in words(tree.find(".//figure"), "li")  # type: ignore[arg-type]
            steps = [told_in(hint, name) for hint in hints(tree)]
            assert sum(steps) == pytest.approx(total, abs=0.0005 * len(steps))


def hints(tree: ElementTree.Element) -> Iterator[str]:
    """What the steps of the first chart say."""
    figure = tree.find(".//figure")
    assert figure is not None
    return (each.findtext("title") or "" for each in figure.iter("rect"))


def told_in(hint: str, name: str) -> float:
    """An amount that a hint tells."""
    found = re.search(rf"{name} ([\d,.]+) s", hint)
    assert found is not None
    return float(found[1].replace(",", ""))


def test_miners_stand_in_order_of_use() -> None:
    """Each of a class's miners has a row with its whole name and its own amounts, the most used first."""
    accounts, starts = network(12, 2, 9)
    tree = parsed(page(a_report(accounts, starts)))
    rows = cells(tree, "Miners of class-1, most spent and held first")
    used = [float(row[3].replace(",", "")) + float(row[4].replace(",", "")) for row in rows]
    assert used == sorted(used, reverse=True)
    by_name = {each.miner_ss58: each for each in accounts if each.executor_class == "class-1"}
    assert sorted(row[1] for row in rows) == sorted(by_name)
    for row in rows:
        assert row[3] == f"{sum(by_name[row[1]].spent):,.3f}"


def test_miners_of_a_class_share_one_scale() -> None:
    """Who grants twice as much is drawn twice as high, so that rows can be compared by eye."""
    accounts = [AccountUsage(f"5{number}", "gpu", [number * 10.0], *([0.0] for _ in range(3))) for number in (1, 2)]
    tree = parsed(page(a_report(accounts, [1, 11])))
    drawn = [each for each in tree.iter("svg") if each.get("class") == "spark"]
    areas = {(each.findtext("title") or "")[:2]: area(each.find("path").get("d") or "") for each in drawn}  # type: ignore[union-attr]
    assert areas == {"52": SPARK_WIDTH * SPARK_HEIGHT, "51": SPARK_WIDTH * SPARK_HEIGHT / 2}


def area(path: str) -> float:
    """The area of a figure of horizontal and vertical lines."""
    points, x, y = [], 0.0, 0.0
    for letter, numbers in re.findall(r"([MVH])([-\d. ]+)", path):
        values = [float(number) for number in numbers.split()]
        x, y = (values[0], values[1]) if letter == "M" else (values[0], y) if letter == "H" else (x, values[0])
        points.append((x, y))
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*points, points[0]]))) / 2


def test_a_chart_draws_what_it_is_given() -> None:
    """A layer's area is its share, also where buckets differ in width, and the line on top is the sum.

    Catches a wide bucket drawn as narrow, and a layer that begins where another does not end.
    """
    values = {
        "spent": [10.0, 0.0, 4.0],
        "held": [5.0, 5.0, 0.0],
        "invalidated": [0.0, 0.0, 0.0],
        "free": [5.0, 35.0, 0],
    }
    starts = [100, 110, 150, 200]
    layers = [Layer(name, amounts) for name, amounts in values.items()]
    drawn = ElementTree.fromstring(chart(starts, layers, ["a", "b", "c"], "title", "description"))
    paths = {each.get("class"): each.get("d") or "" for each in drawn.iter("path")}
    assert set(paths) == {"spent", "held", "free", "granted"}
    of_one = WIDTH * HEIGHT / (100 * 40)
    for name in ("spent", "held", "free"):
        expected = sum(
            value * (end - start) for value, (start, end) in zip(values[name], pairwise(starts), strict=True)
        )
        assert area(paths[name]) == pytest.approx(expected * of_one)
    assert paths["held"] == "M0 200V125H100V175H500V180H1000V180H500V200H100V150H0Z"
    assert paths["granted"] == "M0 100V100H100V0H500V180H1000"
    assert [each.findtext("title") for each in drawn.iter("rect")] == ["a", "b", "c"]
    assert [float(each.get("width") or 0) for each in drawn.iter("rect")] == [100, 400, 500]


def test_a_short_last_step_is_as_high_as_the_others() -> None:
    """Steps show the average of a block: equal blocks make a level line, however many the last step has."""
    account = AccountUsage("5Anna", "gpu", [50.0, 5.0], [20.0, 2.0], [0.0, 0.0], [0.0, 0.0])
    tree = parsed(page(a_report([account], [1, 11, 12])))
    lines = [each.get("d") for each in tree.iter("path") if each.get("class") == "granted"]
    assert lines == ["M0 0V0H1000"] * 2


def test_a_chart_is_lettered_and_described() -> None:
    """Axes with their units and round numbers, a title and a description for those who do not see it."""
    layers = [Layer("spent", [1.0, 3.0]), Layer("free", [3.0, 4.0])]
    drawn = ElementTree.fromstring(chart([1000, 1500, 2000], layers, ["", ""], "title", "description"))
    assert drawn.findtext("title") == "title"
    assert drawn.findtext("desc") == "description"
    assert words(drawn, "text") == [
        *("executor-seconds a block", "0", "2", "4", "6", "8"),
        *("1,000", "1,200", "1,400", "1,600", "1,800", "block"),
    ]


def test_ticks_are_round_and_few() -> None:
    """Whatever the range, no more than asked for, and at numbers that people count in."""
    for high in (4e-9, 0.003, 1, 7, 99, 1234, 10**9):
        found = ticks(0, high, 5)
        assert 2 <= len(found) <= 6
        assert found[0] == 0
        assert found[-1] <= high
        assert found[-1] <= high <= ticks(0, high, 5, beyond=True)[-1]
    assert ticks(5, 5, 5) == []
    assert ticks(0, 0, 5, beyond=True) == [0, 1]


def schemes() -> list[dict[str, str]]:
    """The colours of the light and of the dark scheme by name."""
    return [dict(re.findall(r"--(\w+): (#\w+)", root)) for root in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)]


def lightness(colour: str) -> float:
    """Relative luminance of `#rgb` or `#rrggbb`, from 0 to 1, and 0.05 more."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05


def contrast(one: str, other: str) -> float:
    """How much lighter the lighter one is."""
    darker, lighter = sorted((lightness(one), lightness(other)))
    return lighter / darker


def test_both_schemes_can_be_read() -> None:
    """Text stands out from the paper, and what is side by side in a chart differs in lightness, not in hue alone."""
    light, dark = schemes()
    assert set(light) == set(dark) >= set(re.findall(r"var\(--(\w+)\)", STYLE))
    for colours in (light, dark):
        for text in ("ink", "soft", "good", "bad"):
            assert contrast(colours[text], colours["paper"]) >= READABLE
        for one, other in combinations(STATES, 2):
            assert contrast(colours[one], colours[other]) >= TOLD_APART


def test_a_large_network_makes_a_page_of_a_few_megabytes() -> None:
    """250 miners in five classes, each with a row of its own."""
    text = page(a_report(*network(250, 5, 120)))
    assert text.count('class="spark"') == 1250
    assert len(text.encode()) < 4_000_000


def test_a_hopeless_log_makes_a_page_of_a_few_megabytes() -> None:
    """As many findings as a report lists."""
    findings = [Finding(n, "history-model", "the history differs in status", {"told": n}) for n in range(10_000)]
    text = page(a_report(*network(1, 1, 2), findings=findings, findings_count=10_000))
    assert text.count("the history differs in status") == 10_000
    assert len(text.encode()) < 3_000_000
