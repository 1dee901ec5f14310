"""What a command reads from its user and writes to its user."""
