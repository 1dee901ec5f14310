"""A visitor of the pages in a process of its own: `python -m scripts.benchmark.visitor URL PAGE…`.

It keeps both live streams open and loads the pages in turn, one every `PAUSE_SECONDS`, until its input ends. Then it
writes the number of pages.
"""

from __future__ import annotations

import sys
from itertools import cycle
from threading import Event, Thread
from urllib.request import urlopen

PAUSE_SECONDS = 0.25
STREAMS = ("overview-live", "events-live")


def follow(url: str) -> None:
    """Read a live stream until the process ends."""
    with urlopen(url) as stream:
        for _ in stream:
            pass


def visit(url: str, pages: list[str], ended: Event) -> int:
    """Load the pages in turn until the end; return how many."""
    for number, page in enumerate(cycle(pages)):
        if ended.wait(PAUSE_SECONDS):
            return number
        with urlopen(url + page) as answer:
            answer.read()
    return 0


def main() -> None:
    """Visit until the input ends."""
    url, *pages = sys.argv[1:]
    for stream in STREAMS:
        Thread(target=follow, args=(url + stream,), daemon=True).start()
    ended = Event()
    Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print(visit(url, pages, ended), flush=True)


if __name__ == "__main__":
    main()
