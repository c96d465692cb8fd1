"""The HTTP edge: OpenAI requests in, OpenAI objects and streams out."""
