"""Metrics for Prometheus. Needs the extra `metrics`.

    from prometheus_client import REGISTRY, start_http_server
    from routing import allowance
    from routing.metrics import LedgerCollector, enable

    enable()                                        # counts and times what this process does
    REGISTRY.register(LedgerCollector([allowance])) # reads what the ledger is like, at each scrape
    start_http_server(9100)

`DASHBOARD` is a Grafana dashboard and `ALERTS` a file of alert rules; `allowance guide metrics` lists all metrics.
"""

from pathlib import Path

from .collector import LedgerCollector
from .exposition import exposition
from .feeds import Feed, FeedState
from .recording import disable, enable

__all__ = ["ALERTS", "DASHBOARD", "Feed", "FeedState", "LedgerCollector", "disable", "enable", "exposition"]

DASHBOARD = Path(__file__).with_name("dashboard.json")
"""A dashboard for Grafana, to be imported there."""
ALERTS = Path(__file__).with_name("alerts.yml")
"""Alert rules for Prometheus, for its setting `rule_files`."""
