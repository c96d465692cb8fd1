"""QueueServe: language models from many workers behind one API, with Redis as the control plane."""

__version__ = "0.1.0"
