"""Model workers: they pull jobs from Redis, run them on an engine and publish the tokens."""
