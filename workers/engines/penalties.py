"""What a continuation owes to tokens that another worker has generated."""

from __future__ import annotations

from collections import Counter

from queueserve.protocol import Sampling


def biases(own: Sampling, generated: tuple[int, ...]) -> dict[int, float]:
    """The bias of tokens, with the presence and frequency penalties of `generated`.

    For an engine that takes `generated` for a part of the prompt, which these penalties leave out.
    If such a token is generated once more, its presence is penalised once more, too: a bias cannot
    say "once".
    """
    bias = dict(own.logit_bias)
    if own.presence_penalty or own.frequency_penalty:
        for token, count in Counter(generated).items():
            penalty = own.presence_penalty + own.frequency_penalty * count
            bias[token] = bias.get(token, 0.0) - penalty
    return bias
