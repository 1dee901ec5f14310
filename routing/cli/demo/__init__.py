"""`allowance demo`: a made-up network, imported, routed on and audited."""
