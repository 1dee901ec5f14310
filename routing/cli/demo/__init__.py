"""`allowance demo`: import a made-up network, route jobs on it, and audit the result."""
