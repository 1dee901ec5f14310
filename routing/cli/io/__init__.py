"""Input from the user (argument values, files) and output to the user (text, JSON, progress, files)."""
