"""How many tokens a sequence may still get: what its context and its request leave."""

from __future__ import annotations

from queueserve.errors import ContextLengthExceededError, InvalidRequestError
from workers.engines.base import Sequence


def tokens_left(sequence: Sequence, context_length: int) -> int:
    """Tokens that may follow `prompt` + `generated`; 0 or less where it is at its end.

    Raises InvalidRequestError for an empty prompt, and ContextLengthExceededError for one that
    leaves no room in `context_length` tokens.
    """
    if not sequence.prompt:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    room = context_length - len(sequence.prompt)
    if room <= 0:
        raise ContextLengthExceededError(
            f"the prompt has {len(sequence.prompt)} tokens, but the model's context is "
            f"{context_length} tokens, and the answer must fit in it too",
            param="messages",
        )
    wanted = sequence.sampling.max_tokens
    return (room if wanted is None else min(room, wanted)) - len(sequence.generated)
