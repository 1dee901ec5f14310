"""The parts that all pages and the audit page are made of: markup, style sheet, charts."""
