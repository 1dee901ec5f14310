"""The audit's page: it is complete, self-contained, agrees with the report, and escapes texts from the log."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from itertools import combinations, pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from routing import (
    RULES,
    AccountTotals,
    AccountUsage,
    Allowance,
    AuditReport,
    BlockUsage,
    ClassFairness,
    FairnessReport,
    Finding,
    MinerFairness,
)
from routing.web.audit_page import page
from routing.web.parts.markup import Markup, element
from routing.web.parts.style import STYLE
from routing.web.parts.svg import HEIGHT, SPARK_HEIGHT, SPARK_WIDTH, WIDTH, Layer, chart, ticks
from tests.support.small import GPU, VALIDATOR, Clock, small_ledger
from tests.support.stories import Story, seed_shown

HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J\"'&"
SHOWN = "<script>alert(1)</script>\\u202e\\x1b[2J\"'&"
STATES = ("spent", "held", "invalidated", "free")
READABLE = 4.5
"""Minimum contrast of small text. Source: Web Content Accessibility Guidelines, level AA."""
DISTINGUISHABLE = 1.5
"""Ratio of lightness at which two colours can be distinguished without their hue."""


def parsed(text: str) -> ElementTree.Element:
    """Parse the page as XML, so that anything unclosed, unquoted or unescaped fails."""
    declaration, document = text.split("\n", 1)
    assert declaration == "<!doctype html>"
    return ElementTree.fromstring(document)


def words(tree: ElementTree.Element, tag: str = "*") -> list[str]:
    """Return the text of each element, including its children."""
    return ["".join(each.itertext()) for each in tree.iter(None if tag == "*" else tag)]


def cells(tree: ElementTree.Element, caption: str) -> list[list[str]]:
    """Return the rows of the tables with this caption."""
    return [
        ["".join(cell.itertext()) for cell in row]
        for table in tree.iter("table")
        if table.findtext("caption") == caption
        for row in table.iterfind("tbody/tr")
    ]


def report_of(accounts: list[AccountUsage], starts: list[int], **fields: Any) -> AuditReport:
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
        "strict": True,
    }
    return AuditReport(**{**given, **fields})


def network(miners: int, classes: int, buckets: int) -> tuple[list[AccountUsage], list[int]]:
    """Return accounts that use their allowance unevenly, and the starts of their buckets."""
    starts = [1 + 10 * bucket for bucket in range(buckets + 1)]
    accounts = [
        AccountUsage(
            f"5{'Miner' * 9}{number:02}",
            f"class-{name}",
            [120.0] * buckets,
            [float((bucket * number) % 90) for bucket in range(buckets)],
            [float(bucket % 11) for bucket in range(buckets)],
            [float((bucket + number) % 7) for bucket in range(buckets)],
        )
        for number in range(miners)
        for name in range(classes)
    ]
    return accounts, starts


def test_the_page_loads_nothing_from_the_network() -> None:
    """The page has no link, no script and no external resource, and a policy that forbids them.

    Catches a page that is empty without a network, or that reports to a server that it was opened.
    """
    text = page(report_of(*network(3, 2, 12)))
    tree = parsed(text)
    loading_tags = {"link", "script", "img", "image", "iframe", "object", "embed", "base", "use", "a", "form"}
    assert not loading_tags & {each.tag for each in tree.iter()}
    names = {name for each in tree.iter() for name in each.attrib}
    assert not {"src", "href", "srcset", "action", "data", "style"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"url\(|@import|//", text)
    policies = [each.get("content") for each in tree.iter("meta") if each.get("http-equiv")]
    digest = b64encode(sha256(STYLE.encode()).digest()).decode()
    assert policies == [f"default-src 'none'; style-src 'sha256-{digest}'"]
    assert [each.text for each in tree.iter("style")] == [STYLE]
    assert len(list(tree.iter("figure"))) == 1 + 2


def test_strings_that_are_not_markup_are_escaped() -> None:
    """Strings are escaped in elements and in attributes, unless they are `Markup`."""
    assert element("p", "<b>", class_='">') == '<p class="&quot;&gt;">&lt;b&gt;</p>'
    assert element("p", Markup("<b></b>"), "\u202e\n") == "<p><b></b>\\u202e\\n</p>"
    assert element("p", "", class_="") == "<p></p>"


def test_texts_from_the_log_are_escaped_everywhere() -> None:
    """Names and messages that contain tags or change the reading direction are shown as plain text.

    Catches any part of the page that shows a name unescaped.
    """
    accounts, starts = network(1, 1, 2)
    hostile = AccountUsage(HOSTILE, HOSTILE, *([1.0, 2.0] for _ in range(4)))
    finding = Finding(3, HOSTILE, HOSTILE, {HOSTILE: HOSTILE, "list": [HOSTILE], "dict": {HOSTILE: None}})
    report = report_of(
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
    for part in ("validator", "head", "type", "rule", "rule", "message", "name", "value", "total", "chart", "miner"):
        assert SHOWN in isolated, part
        isolated.remove(SHOWN)


def test_every_finding_is_shown() -> None:
    """Findings are ordered by position, with rule and details; those after the first fifty are folded."""
    rules = list(RULES)
    details = {"blocks": [1, 2], "account": "5Miner", "none": None}
    findings = [Finding(n + 1, rules[n % len(rules)].value, f"message {n}", {**details, "n": n}) for n in range(120)]
    tree = parsed(page(report_of(*network(1, 1, 3), findings=findings, findings_count=120)))
    rows = cells(tree, "Findings") + cells(tree, "More findings")
    assert rows == [
        [f"{n + 1:,}", rules[n % len(rules)].value, f"message {n}", f"blocks: [1, 2]account: 5Minernone: nulln: {n}"]
        for n in range(120)
    ]
    assert [len(cells(tree, caption)) for caption in ("Findings", "More findings")] == [50, 70]
    assert "✗ 120 findings in 7 events" in words(tree, "p")
    assert "70 more findings" in words(tree, "summary")


def test_each_rule_shows_whether_it_holds() -> None:
    """A rule is broken (with a count), holds, or is unknown: if nothing was compared, or findings are only counted.

    Catches a check mark for a rule whose findings were only counted.
    """
    findings = [Finding(4, "hash-chain", "wrong", {}), Finding(9, "hash-chain", "wrong", {})]

    def holds(**fields: Any) -> dict[str, str]:
        rows = cells(parsed(page(report_of([], [], **fields))), "Rules")
        assert [[rule, requirement] for _, rule, requirement in rows] == [[rule.value, RULES[rule]] for rule in RULES]
        return {rule: mark for mark, rule, _ in rows}

    assert set(holds().values()) == {"✓"}
    broken = holds(findings=findings, findings_count=2)
    assert broken.pop("hash-chain") == "✗ 2 findings"
    assert set(broken.values()) == {"✓"}
    assert holds(findings=findings, findings_count=3)["head-row"] == "unknown"
    uncompared = holds(history_position=None, snapshots=0, live_state=False, strict=False)
    unknown = ("history-model", "snapshots", "live-state", "choice-proved")
    assert {uncompared.pop(rule) for rule in unknown} == {"unknown"}
    assert set(uncompared.values()) == {"✓"}
    unproved = holds(unproved_choices=2)
    assert unproved.pop("routing-decision") == "unknown"
    assert set(unproved.values()) == {"✓"}


def test_choices_that_are_not_proved_are_counted() -> None:
    """The summary names their number, and nothing if every choice was repeated."""
    text = page(report_of([], [], unproved_choices=3))
    assert "3 routes, whose miner only the claim proves" in words(parsed(text), "dd")
    assert "not proved" not in page(report_of([], []))


def test_fairness_names_what_is_flagged_and_who_chose() -> None:
    """A sentence for each flag with its numbers, a row for each class and for each miner, texts of the log escaped."""
    favoured = MinerFairness(
        "5<b>Friend",
        "gpu",
        77,
        1,
        2,
        3,
        78,
        200,
        20.0,
        13.7,
        21.0,
        12.4,
        0,
        1,
        60.0,
        4,
        100.0,
        50.0,
        ["draws", "facts"],
    )
    plain = MinerFairness("5Rival", "gpu", 10, 0, 0, 0, 10, 200, 20.0, -2.4, 20.0, -2.4, 9, 0, 0.0, 0, 100.0, 0.0, [])
    classes = [ClassFairness("gpu", 2, 200.0, 50.0, 0.5, 0.5), ClassFairness("idle", 0, 0.0, 0.0, 1.0, 0.0)]
    report = report_of([], [], fairness=FairnessReport([plain, favoured], classes, ["the settings returned"]))
    tree = parsed(page(report))
    assert [row[:6] for row in cells(tree, "Fairness by executor class")] == [
        ["gpu", "2", "25.0 %", "0.500", "0.500", "1"],
        ["idle", "0", "-", "1.000", "0.000", "0"],
    ]
    assert [row[:8] for row in cells(tree, "Fairness by miner")] == [
        ["5<b>Friend", "gpu", "77", "1", "2", "3", "200", "78"],
        ["5Rival", "gpu", "10", "0", "0", "0", "200", "10"],
    ]
    flagged = words(tree, "li")
    assert "the settings returned" in flagged
    assert any(text.startswith("5<b>Friend gpu: draws (78 wins, expected 20.0, +13.7 σ); facts (") for text in flagged)


def test_broken_rules_are_summarized() -> None:
    """Above the findings, each broken rule is listed once, with its count and first position."""
    findings = [Finding(n, rule, "wrong", {}) for n, rule in enumerate(["keys-once", "due-time", "due-time"], start=5)]
    tree = parsed(page(report_of([], [], findings=findings, findings_count=20_000)))
    assert [row[:3] for row in cells(tree, "Broken rules")] == [["2", "6", "due-time"], ["1", "5", "keys-once"]]
    assert "20,000 findings, of which the first 3 are listed, by position in the log." in words(tree, "p")


@pytest.mark.parametrize("usage", [None, BlockUsage([], []), BlockUsage([1, 2], [])])
def test_an_empty_report_has_a_page(usage: BlockUsage | None) -> None:
    """Without grants, accounts or usage the page has no charts, and nothing fails."""
    tree = parsed(page(report_of([], [], usage=usage, events={}, position=0)))
    assert "✓ No finding in 0 events" in words(tree, "p")
    assert not list(tree.iter("figure"))


@pytest.mark.parametrize("blocks", [0, 1, 2])
async def test_a_new_ledger_has_a_page(blocks: int) -> None:
    """Charts appear once a block is finalized, which needs two blocks."""
    async with small_ledger(blocks=blocks) as ledger:
        report = await ledger.audit(usage_buckets=120)
    figures = [figure.findtext("figcaption/h3/bdi") for figure in parsed(page(report)).iter("figure")]
    assert figures == (["All classes", GPU] if blocks > 1 else [])


async def test_charts_and_tables_show_the_totals_of_the_audit() -> None:
    """For a real ledger, the charts' keys, the sums of their tooltips and the tables agree with the audit's totals."""
    seed = 7
    with seed_shown(seed):
        clock = Clock()
        async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
            await Story(ledger, clock, seed).goes_on(400)
            report = await ledger.audit(usage_buckets=13)
        tree = parsed(page(report))
        for name, column in (("granted", 2), ("spent", 3), ("held", 4), ("invalidated", 5)):
            total = sum(getattr(each, f"{name}_seconds") for each in report.totals)
            assert total > 0
            assert cells(tree, "Totals by executor class")[-1][column] == f"{total:,.3f}"
            assert f"{name} {total:,.3f} s" in words(tree.find(".//figure"), "li")  # type: ignore[arg-type]
            steps = [amount_in(hint, name) for hint in hints(tree)]
            assert sum(steps) == pytest.approx(total, abs=0.0005 * len(steps))


def hints(tree: ElementTree.Element) -> Iterator[str]:
    """Return the tooltips of the first chart."""
    figure = tree.find(".//figure")
    assert figure is not None
    return (each.findtext("title") or "" for each in figure.iter("rect"))


def amount_in(hint: str, name: str) -> float:
    """Return the amount of a state in a tooltip."""
    found = re.search(rf"{name} ([\d,.]+) s", hint)
    assert found is not None
    return float(found[1].replace(",", ""))


def test_miners_are_ordered_by_use() -> None:
    """Each miner of a class has a row with its full hotkey and its own amounts, the most used first."""
    accounts, starts = network(12, 2, 9)
    tree = parsed(page(report_of(accounts, starts)))
    rows = cells(tree, "Miners of class-1, most spent and held first")
    used = [float(row[3].replace(",", "")) + float(row[4].replace(",", "")) for row in rows]
    assert used == sorted(used, reverse=True)
    by_name = {each.miner_ss58: each for each in accounts if each.executor_class == "class-1"}
    assert sorted(row[1] for row in rows) == sorted(by_name)
    for row in rows:
        assert row[3] == f"{sum(by_name[row[1]].spent):,.3f}"


def test_miners_of_a_class_share_one_scale() -> None:
    """A miner that grants twice as much is drawn twice as high, so rows can be compared by eye."""
    accounts = [AccountUsage(f"5{number}", "gpu", [number * 10.0], *([0.0] for _ in range(3))) for number in (1, 2)]
    tree = parsed(page(report_of(accounts, [1, 11])))
    drawn = [each for each in tree.iter("svg") if each.get("class") == "spark"]
    areas = {(each.findtext("title") or "")[:2]: area(each.find("path").get("d") or "") for each in drawn}  # type: ignore[union-attr]
    assert areas == {"52": SPARK_WIDTH * SPARK_HEIGHT, "51": SPARK_WIDTH * SPARK_HEIGHT / 2}


def area(path: str) -> float:
    """Return the area of a path of horizontal and vertical lines."""
    points, x, y = [], 0.0, 0.0
    for letter, numbers in re.findall(r"([MVH])([-\d. ]+)", path):
        values = [float(number) for number in numbers.split()]
        x, y = (values[0], values[1]) if letter == "M" else (values[0], y) if letter == "H" else (x, values[0])
        points.append((x, y))
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*points, points[0]]))) / 2


def test_areas_of_a_chart_are_proportional_to_the_values() -> None:
    """A layer's area is proportional to its values, also if buckets differ in width, and the top line is the sum.

    Catches a wide bucket drawn too narrow, and a gap or overlap between layers.
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
    area_of_one = WIDTH * HEIGHT / (100 * 40)
    for name in ("spent", "held", "free"):
        expected = sum(
            value * (end - start) for value, (start, end) in zip(values[name], pairwise(starts), strict=True)
        )
        assert area(paths[name]) == pytest.approx(expected * area_of_one)
    assert paths["held"] == "M0 200V125H100V175H500V180H1000V180H500V200H100V150H0Z"
    assert paths["granted"] == "M0 100V100H100V0H500V180H1000"
    assert [each.findtext("title") for each in drawn.iter("rect")] == ["a", "b", "c"]
    assert [float(each.get("width") or 0) for each in drawn.iter("rect")] == [100, 400, 500]


def test_a_short_last_step_is_as_high_as_the_others() -> None:
    """Steps show the average per block: equal blocks give a level line, even if the last step has fewer blocks."""
    account = AccountUsage("5Anna", "gpu", [50.0, 5.0], [20.0, 2.0], [0.0, 0.0], [0.0, 0.0])
    tree = parsed(page(report_of([account], [1, 11, 12])))
    lines = [each.get("d") for each in tree.iter("path") if each.get("class") == "granted"]
    assert lines == ["M0 0V0H1000"] * 2


def test_a_chart_has_axes_a_title_and_a_description() -> None:
    """The axes have units and round numbers; title and description serve screen readers."""
    layers = [Layer("spent", [1.0, 3.0]), Layer("free", [3.0, 4.0])]
    drawn = ElementTree.fromstring(chart([1000, 1500, 2000], layers, ["", ""], "title", "description"))
    assert drawn.findtext("title") == "title"
    assert drawn.findtext("desc") == "description"
    assert words(drawn, "text") == [
        *("executor-seconds per block", "0", "2", "4", "6", "8"),
        *("1,000", "1,200", "1,400", "1,600", "1,800", "block"),
    ]


def test_ticks_are_round_and_few() -> None:
    """For any range there are at most the requested steps, at round numbers."""
    for high in (4e-9, 0.003, 1, 7, 99, 1234, 10**9):
        found = ticks(0, high, 5)
        assert 2 <= len(found) <= 6
        assert found[0] == 0
        assert found[-1] <= high
        assert found[-1] <= high <= ticks(0, high, 5, beyond=True)[-1]
    assert ticks(5, 5, 5) == []
    assert ticks(0, 0, 5, beyond=True) == [0, 1]


def schemes() -> list[dict[str, str]]:
    """Return the colours of the light and of the dark scheme by name."""
    return [dict(re.findall(r"--(\w+): (#\w+)", root)) for root in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)]


def lightness(colour: str) -> float:
    """Return the relative luminance of `#rgb` or `#rrggbb`, from 0 to 1, plus 0.05.

    Source: Web Content Accessibility Guidelines.
    """
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours."""
    darker, lighter = sorted((lightness(one), lightness(other)))
    return lighter / darker


def test_both_colour_schemes_are_readable() -> None:
    """Text has enough contrast, and the states in a chart differ in lightness, not only in hue."""
    light, dark = schemes()
    assert set(light) == set(dark) >= set(re.findall(r"var\(--(\w+)\)", STYLE))
    for colours in (light, dark):
        for text in ("ink", "soft", "good", "bad"):
            assert contrast(colours[text], colours["paper"]) >= READABLE
        for one, other in combinations(STATES, 2):
            assert contrast(colours[one], colours[other]) >= DISTINGUISHABLE


def test_a_large_network_makes_a_page_of_a_few_megabytes() -> None:
    """The page of 250 miners in five classes, each with a row, stays below 4 MB."""
    text = page(report_of(*network(250, 5, 120)))
    assert text.count('class="spark"') == 1250
    assert len(text.encode()) < 4_000_000


def test_many_findings_make_a_page_of_a_few_megabytes() -> None:
    """The page of 10,000 findings, the most that a report lists, stays below 3.5 MB."""
    findings = [Finding(n, "history-model", "the history differs in status", {"told": n}) for n in range(10_000)]
    text = page(report_of(*network(1, 1, 2), findings=findings, findings_count=10_000))
    assert text.count("the history differs in status") == 10_000
    assert len(text.encode()) < 3_500_000
