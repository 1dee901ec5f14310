"""The settings that apply, every change of them, and the corrections of facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any

from ledger import Settings
from ledger.events import BlockWithdrawn, ManifestsWithdrawn
from routing.documents import as_fields
from routing.texts import printable, time_text
from routing.web.components import anchor, empty
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, table, text
from routing.web.visit import Answer, Visit

if TYPE_CHECKING:
    from routing import SettingsRecord, StoredEvent

PARAMETERS = ()


async def settings(visit: Visit) -> Answer:
    """Return the settings with their changes and the corrections, oldest first."""
    current = await visit.ledger.settings()
    changes = await visit.ledger.settings_changes()
    corrections = await visit.ledger.corrections()
    document = {
        "settings": _values(current),
        "changes": [as_fields(each) for each in changes],
        "corrections": [each.to_dict() for each in corrections],
    }
    return Answer("Settings and corrections", document, lambda: _body(visit, current, changes, corrections))


def _values(current: Settings) -> dict[str, Any]:
    return {each.name: getattr(current, each.name) for each in fields_of(current)}


def _body(visit: Visit, current: Settings, changes: list[SettingsRecord], corrections: list[StoredEvent]) -> Markup:
    explanation = (
        "The settings apply to what is finalized and claimed from now on. Durations are seconds, ages are blocks."
    )
    change_them = element(
        "p", "Change them with ", element("code", "allowance settings set FIELD=VALUE"), ".", class_="soft"
    )
    parts = (
        element("p", explanation),
        _settings(current, changes),
        change_them,
        element("h2", "Changes"),
        _changes(visit, changes),
        element("h2", "Corrections"),
        _corrections(visit, corrections),
    )
    return joined(parts)


def _settings(current: Settings, changes: list[SettingsRecord]) -> Markup:
    since = {name: each.position for each in changes for name in each.changes}
    rows = (
        (element("code", name), text(_shown(value)), f"{since[name]:,}" if name in since else "-")
        for name, value in _values(current).items()
    )
    return table("Settings", ("Setting", "Value", "Since position"), rows, ("", "", NUMBER), of=STACKED)


def _changes(visit: Visit, changes: list[SettingsRecord]) -> Markup:
    rows = [
        (
            anchor(visit.link("events", before=each.position + 1), f"{each.position:,}"),
            time_text(each.recorded_at),
            element("code", name),
            text(_shown(old)),
            text(_shown(new)),
        )
        for each in changes[1:]
        for name, (old, new) in each.changes.items()
    ]
    if not rows:
        return empty("None: the settings are those with which the ledger was opened.")
    headers = ("Position", "Recorded at, UTC", "Setting", "Old value", "New value")
    return table("Changes of settings", headers, rows, (NUMBER, "fixed"), of=STACKED)


def _corrections(visit: Visit, corrections: list[StoredEvent]) -> Markup:
    if not corrections:
        return empty("None: no block and no manifest sync was withdrawn.")
    headers = ("Position", "Recorded at, UTC", "Withdrawn", "Reason")
    return table("Corrections", headers, _correction_rows(visit, corrections), (NUMBER, "fixed"), of=STACKED)


def _correction_rows(visit: Visit, corrections: list[StoredEvent]) -> Iterator[tuple[str, ...]]:
    for each in corrections:
        event = each.event
        assert isinstance(event, BlockWithdrawn | ManifestsWithdrawn)
        what = f"block {event.number:,}" if isinstance(event, BlockWithdrawn) else f"sync at block {event.block:,}"
        link = anchor(visit.link("events", before=each.position + 1), f"{each.position:,}")
        yield link, time_text(each.recorded_at), what, text(event.reason)


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{name}: {number}" for name, number in value.items()) or "none"
    return printable(str(value))
