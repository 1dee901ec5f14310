"""The version of this release; the package's metadata has it from here."""

__version__ = "0.2.0"
