"""Integrations with other libraries; each module works with the library that it is named after."""
