"""Figures about the code itself: its size, its comments, its doors, its calls across modules, and its start.

Run by `scripts/measure`. Nothing here ships, and no figure is a limit: they show what a rewrite has changed.
"""
