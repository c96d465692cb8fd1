"""One file per endpoint: HTTP only."""
