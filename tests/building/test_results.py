"""Every result can be stored, sent and described: `to_dict`, pydantic, FastAPI."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import timedelta
from fractions import Fraction
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

import routing
from ledger.results import Result
from routing import (
    Difference,
    Finding,
    Head,
    ImportedReservation,
    JobRoute,
    Miner,
    Page,
    Receipt,
    Reservation,
    Routing,
    Settings,
)
from tests.support.small import GPU, START, VALIDATOR, job, small_ledger

# FastAPI resolves annotations by the names of the module. Only the whole suite has it.
with suppress(ImportError):
    import fastapi

FACTS = {"BlockFact", "ManifestsFact"}
"""Structs that callers make and the library only reads."""


def exported_results() -> dict[str, type]:
    exported = {name: getattr(routing, name) for name in dir(routing) if name not in FACTS}
    return {
        name: each
        for name, each in exported.items()
        if isclass(each) and (issubclass(each, msgspec.Struct | tuple) or is_dataclass(each))
    }


def parts(value: Any) -> Iterator[Any]:
    """The results in a value, itself included."""
    if isinstance(value, Result):
        yield value
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(each)


async def results_of_a_ledger(directory: Path) -> list[Any]:
    async with small_ledger(url=f"sqlite:///{directory}/ledger.db") as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("a"))
        await ledger.settle(route, "spend")
        await ledger.change_settings(allowance_multiplier="3/2")
        receipts = await ledger.receipts()
        receipt = Receipt(VALIDATOR, "5Anna", GPU, START + timedelta(seconds=125), [1, 2], 6.0)
        return [
            route,
            receipts.take(receipt),
            receipts.take(receipt),  # refused, because its blocks are spent
            ImportedReservation(
                miner_ss58="5Anna",
                executor_class=GPU,
                blocks=[(1, 2)],
                amount_seconds=6.0,
                reserved_at=START,
                expires_at=START,
            ),
            await ledger.export(directory / "ledger.export"),
            await routing.restore(directory / "ledger.export", f"sqlite:///{directory}/restored.db"),
            await ledger.miners(),
            await ledger.find_miners(6.0, GPU, 11),
            await ledger.history(),
            await ledger.why("5Anna", GPU),
            await ledger.explain("a"),
            await ledger.overview(),
            await ledger.miner_records(),
            await ledger.under_policy({}),
            list((await ledger.workload(GPU)).values()),
            await ledger.settings(),
            await ledger.settings_changes(),
            await ledger.head(),
            [stored async for stored in ledger.events()],
            await ledger.verify(),
            await ledger.health(),
            await ledger.audit(usage_buckets=3),
            await ledger.rebuild(),
            Finding(7, "conservation", "does not add up", {"amount": Fraction(1, 3)}),
            Difference("reservation", 7, {"status": "spent"}, None),
        ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A result of each class, by name."""
    made = asyncio.run(results_of_a_ledger(tmp_path_factory.mktemp("results")))
    return {type(part).__name__: part for part in parts(made)}


def test_every_exported_class_of_results_shares_the_mechanism(results: dict[str, Any]) -> None:
    """A new result cannot be exported without `to_dict`, nor without being tried here."""
    assert set(results) == set(exported_results())
    assert [name for name, each in exported_results().items() if not issubclass(each, Result)] == []


@pytest.mark.parametrize("name", sorted(exported_results()))
def test_to_dict_is_ready_for_json(name: str, results: dict[str, Any]) -> None:
    """`json.dumps` takes the dictionary as it stands, and its keys are the fields."""
    result = results[name]
    described = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    names = getattr(result, "__struct_fields__", None) or getattr(result, "_fields", None)
    assert list(described) == list(names or [field.name for field in fields(result)])


def test_to_dict_writes_times_fractions_and_hashes_as_text() -> None:
    """The three kinds of values that JSON has no notation for."""
    reservation = Reservation(1, "reserved", "5V", "5M", GPU, None, 6.0, [1], 2, START, START, None)
    assert reservation.to_dict()["reserved_at"] == "2024-01-01T00:00:00Z"
    assert Page([reservation], None, True).to_dict()["items"] == [reservation.to_dict()]
    assert Settings(allowance_multiplier="3/2").to_dict()["allowance_multiplier"] == "3/2"
    assert Head(3, b"\xff\x00", 7).to_dict() == {"position": 3, "hash": "ff00", "recorded_at_ns": 7}


@pytest.mark.parametrize("name", sorted(exported_results()))
def test_a_pydantic_model_has_it_as_a_field(name: str, results: dict[str, Any]) -> None:
    """Through JSON and through Python objects, a model gives an equal result of the same class."""
    result = results[name]
    model: Any = create_model("Model", result=(type(result), ...))
    made = model(result=result)
    assert made.result is result or is_dataclass(result)
    assert type(model.model_validate(made.model_dump()).result) is type(result)
    again = model.model_validate_json(made.model_dump_json())
    assert type(again.result) is type(result)
    assert json.loads(model(result=again.result).model_dump_json()) == json.loads(made.model_dump_json())
    assert again.result == result or name in ("Finding", "SettingsRecord")  # Any value, of which JSON keeps the text.


@pytest.mark.parametrize("name", sorted(exported_results()))
def test_pydantic_describes_it_by_its_own_name_and_docstring(name: str) -> None:
    """JSON Schema, and so OpenAPI, shows the class with its fields, not an unnamed object."""
    for mode in ("validation", "serialization"):
        schema = TypeAdapter(list[exported_results()[name]]).json_schema(mode=mode)  # type: ignore[misc, arg-type]  # known at run time only
        assert schema["items"] == {"$ref": f"#/$defs/{name}"}
        described = schema["$defs"][name]
        assert described["title"] == name
        assert described["description"].startswith((exported_results()[name].__doc__ or "").split("\n")[0])
        assert described["properties"]


def test_pydantic_refuses_what_is_no_result() -> None:
    """A missing field and a wrong type are named, as for a model of pydantic's own."""

    class Answer(BaseModel):
        page: Page

    with pytest.raises(ValidationError) as refused:
        Answer.model_validate({"page": {"items": [{"reservation_id": "x"}], "next": None, "checked": True}})
    problems = {error["loc"][-1] for error in refused.value.errors() if "items" in error["loc"]}
    assert {"reservation_id", "status", "settled_at"} <= problems


async def test_fastapi_answers_with_results_and_describes_them() -> None:
    """A route annotated with a result needs no model of its own; the body of a request may be one too."""
    pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    route = JobRoute(Miner("192.0.2.7", 4, 8000, "5Anna"), [1, 2], 7, 6.0)

    async def pick() -> JobRoute:
        return route

    async def echo(page: Annotated[Page, fastapi.Body()]) -> list[Reservation]:
        return page.items

    app.get("/pick")(pick)
    app.post("/echo")(echo)
    reservation = Reservation(1, "spent", "5V", "5M", GPU, "a", 6.0, [1], 2, START, START, START)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/pick")).json() == route.to_dict()
        echoed = await client.post("/echo", json=Page([reservation], None, True).to_dict())
        assert echoed.json() == [reservation.to_dict()]
        described = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert {"JobRoute", "Miner", "Page", "Reservation"} <= set(described)
    assert described["Reservation"]["properties"]["reserved_at"]["format"] == "date-time"


def test_pydantic_is_no_dependency() -> None:
    """A process that uses results, but not pydantic, does not import it. It fails if the schema module is imported."""
    script = (
        "import sys; from routing import *; Settings().to_dict(); Head().to_dict(); "
        "print(any(each.startswith(('pydantic', 'ledger.pydantic')) for each in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "False"
