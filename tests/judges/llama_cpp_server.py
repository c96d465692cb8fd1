"""llama.cpp's own HTTP server with the small model, until stdin ends; prints its address."""

from __future__ import annotations

import sys

import xllamacpp

from workers.models import resolve

SLOTS, CONTEXT = 4, 4096  # as `queueserve up` has them on a small machine


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = resolve().path
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
    params.use_jinja = True  # its tool calls need the chat template
    params.ui = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
