"""The query of a request: each parameter is typed and bounded, and a wrong one is refused by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import datetime
from urllib.parse import urlencode

from ledger.errors import InvalidInput
from ledger.values import LARGEST_INTEGER

MOMENT = ("position", "block", "time")
"""The parameters of every page that name a moment of the past."""
FORMAT = "format"
LONGEST_TEXT = 256


class Parameters:
    """The parameters of one request. An empty one counts as left out, since forms send every field.

    Every reading method raises `InvalidInput`, whose field is the parameter.
    """

    def __init__(self, items: Iterable[tuple[str, str]], known: Collection[str]) -> None:
        self._values: dict[str, str] = {}
        for name, value in items:
            if name not in (*known, *MOMENT, FORMAT):
                raise InvalidInput("the parameter", name, f"one of {', '.join((*known, *MOMENT, FORMAT))}")
            if name in self._values:
                raise InvalidInput(name, value, "given once")
            if value.strip():
                self._values[name] = value.strip()

    def text(self, name: str, longest: int = LONGEST_TEXT) -> str | None:
        """Return a text of at most `longest` characters; None if it is left out."""
        value = self._values.get(name)
        if value is not None and len(value) > longest:
            raise InvalidInput(name, value, f"at most {longest} characters")
        return value

    def needed_text(self, name: str) -> str:
        """Return a text that the page cannot do without."""
        value = self.text(name)
        if value is None:
            raise InvalidInput(name, value, "given")
        return value

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        """Return one of the choices; None if it is left out."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise InvalidInput(name, value, f"one of {', '.join(choices)}")
        return value

    def whole(self, name: str, least: int = 1, most: int = LARGEST_INTEGER) -> int | None:
        """Return a whole number in the range; None if it is left out."""
        value = self.text(name)
        if value is None:
            return None
        # `int` alone would also accept signs, spaces, underscores and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII) or not least <= int(value) <= most:
            raise InvalidInput(name, value, f"a whole number from {least} to {most}")
        return int(value)

    def seconds(self, name: str) -> float | None:
        """Return a finite number of seconds above 0; None if it is left out."""
        value = self.text(name)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise InvalidInput(name, value, "a number of seconds above 0, such as 30 or 2.5")
        return number

    def time(self, name: str) -> datetime | None:
        """Return an aware datetime; None if it is left out."""
        value = self.text(name)
        if value is None:
            return None
        try:
            # The `+` of a zone means a space in a query, and is easily left as it is.
            parsed = datetime.fromisoformat(re.sub(r" (\d\d:?\d\d)$", r"+\1", value))
        except ValueError:
            parsed = None
        if parsed is None or parsed.tzinfo is None:
            raise InvalidInput(name, value, "a time with its time zone, such as 2024-01-01T12:00:00Z")
        return parsed

    def moment(self) -> dict[str, int | datetime]:
        """Return the arguments of `Allowance.at` that the query names; none for the present."""
        named: dict[str, int | datetime | None] = {
            "position": self.whole("position"),
            "block": self.whole("block"),
            "time": self.time("time"),
        }
        given = {name: value for name, value in named.items() if value is not None}
        if len(given) > 1:
            raise InvalidInput("the moment", ", ".join(given), "only one of position, block and time")
        return given

    def given(self) -> dict[str, str]:
        """Return the parameters as they were given, without the format."""
        return {name: value for name, value in self._values.items() if name != FORMAT}

    def link(self, path: str, /, **parameters: object) -> str:
        """Return a relative link to another page at the same moment; a parameter that is None is left out."""
        moment = {name: self._values[name] for name in MOMENT if name in self._values}
        return link(path, **{**moment, **parameters})

    def same(self, path: str, /, **changed: object) -> str:
        """Return a link with the same parameters, except those that are changed; None removes one."""
        return link(path, **{**self.given(), **changed})


def link(path: str, /, **parameters: object) -> str:
    """Return a relative link with its query.

    The pages of a ledger lie side by side, so it is right under any prefix.
    """
    given = {name: str(value) for name, value in parameters.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
