"""Bounds on what one request may bring."""

from __future__ import annotations

MAX_MESSAGES = 2_048
MAX_CHARS = 4_000_000
"""Characters of all messages, or of all prompts, together: a million tokens, about, which is more
than models take, and some seconds of a tokenizer's time."""
MAX_PROMPT_TOKENS = 1_000_000
"""Tokens of all prompts together, where they come as ids: as many as MAX_CHARS have, about."""
MAX_CHOICES = 128
MAX_TOOLS = 128
"""Tools of a request, and calls in one message."""
MAX_PARTS = 1_024
"""Parts of one message's content."""
MAX_IMAGES = 32
"""Images in all messages together."""
MAX_IMAGE_BYTES = 10 * 1024 * 1024
MAX_LINK_CHARS = 4_096
"""Characters of the link to an image that is none of data."""
MAX_PROMPTS = 1_024
MAX_INPUTS = 16_384
"""Texts of a request for embeddings or scores."""
MAX_INPUT_CHARS = 16_000_000
"""Characters of all these texts together: a thousand in each, and what the largest body holds."""
MAX_INPUT_TOKENS = 4_000_000
"""Tokens of all these together, where they come as ids."""
MAX_QUERY_CHARS = 100_000
"""Characters of what documents are scored against: it goes along with every job, so up to 16,384
times; more than any model of that kind reads."""
MAX_JOBS = 1_024
"""Prompts times choices: each is a job of its own."""
MAX_DEPTH = 100
"""Levels of an object that a job carries; orjson encodes some 250."""
MAX_STOPS = 16
MAX_STOP_CHARS = 1_024
MAX_BIASES = 1_024
MAX_METADATA = 16
MAX_LOGPROBS = 20
"""Alternatives to a token."""
MAX_CONSTRAINT_CHARS = 200_000
MAX_CHOICE_TEXTS = 1_024
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 10_000_000
