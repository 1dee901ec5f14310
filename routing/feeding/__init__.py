"""A feeder: follows the chain and records its blocks and manifests."""

from .contract import ChainSource, FeedState
from .feeder import Feeder

__all__ = ["ChainSource", "FeedState", "Feeder"]
