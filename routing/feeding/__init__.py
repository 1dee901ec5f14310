"""A feeder: follows the chain and records its blocks and manifests."""
