"""The reservation history: a read model in SQL, its projector, and pages of it."""
