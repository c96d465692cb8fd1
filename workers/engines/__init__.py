"""Adapters: one file per engine, each importing its library only when it is chosen."""
