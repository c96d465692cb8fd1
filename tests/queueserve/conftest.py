"""What tests of the API server's side share."""

import socket

import pytest


@pytest.fixture
def closed_port():
    """A port on which nobody listens, and nobody else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
