"""One file per endpoint: the shapes of requests."""
