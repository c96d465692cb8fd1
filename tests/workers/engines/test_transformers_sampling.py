import collections
import math

import pytest

from queueserve.protocol import Sampling

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.continuous_batching.requests import (  # noqa: E402
    FutureRequestState,
    RequestState,
)

from workers.engines.transformers_sampling import Drawing, Sampler, draw, uniform  # noqa: E402

SCORES = [2.0, 1.0, 0.5, 0.0, -1.0, -3.0]


def drawing(prompt=(), ends=(), **sampling):
    return Drawing(Sampling(**sampling), tuple(prompt), tuple(ends))


def draws(count, scores=SCORES, **sampling):
    """How often each token is drawn with the numbers that follow one seed."""
    numbers = [uniform(1, index) for index in range(count)]
    rows = torch.tensor(scores).expand(count, -1)
    return collections.Counter(draw(rows, [drawing(**sampling)] * count, numbers).tolist())


def adjusted(scores, output=(), **own):
    row = torch.tensor(scores)
    drawing(**own).adjust(row, list(output))
    return row.tolist()


def test_the_number_of_a_token_depends_on_seed_and_index_alone():
    assert uniform(7, 3) == 0.7806919151630396
    assert len({uniform(seed, index) for seed in range(50) for index in range(50)}) == 2500


def test_the_numbers_are_spread_evenly():
    numbers = sorted(uniform(5, index) for index in range(4000))
    furthest = max(abs(number - at / 4000) for at, number in enumerate(numbers))
    assert furthest < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov at 1 %
    assert 0 <= numbers[0] <= numbers[-1] < 1


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_transformers_own_sampling_would(own):
    scores = torch.tensor([SCORES])
    for value, warper in (
        (own.get("temperature"), TemperatureLogitsWarper),
        (own.get("top_k"), TopKLogitsWarper),
        (own.get("top_p"), TopPLogitsWarper),
        (own.get("min_p"), MinPLogitsWarper),
    ):
        if value is not None:
            scores = warper(value)(None, scores)
    expected = scores.softmax(-1)[0].tolist()
    drawn = draws(4000, **own)
    for token, probability in enumerate(expected):
        spread = 4 * math.sqrt(4000 * probability * (1 - probability))
        assert abs(drawn[token] - 4000 * probability) <= spread


def test_a_nucleus_wider_than_the_candidates_looked_at_first_is_found():
    # 1000 tokens as likely as each other: half of them hold 0.5, more than a first look sees.
    scores = [0.001 * -token for token in range(1000)]
    kept = torch.tensor(scores).softmax(-1).cumsum(0)
    size = int((kept < 0.5).sum()) + 1
    drawn = draws(4000, scores, top_p=0.5)
    assert 256 < size < 1000
    assert max(drawn) < size
    assert max(drawn) > size - 20


def test_a_top_p_that_rounding_puts_out_of_reach_keeps_all_tokens():
    assert set(draws(4000, [0.0, 0.0, 0.0], top_p=1 - 1e-12)) == {0, 1, 2}


def test_a_very_low_temperature_takes_the_most_likely_token():
    assert draws(50, temperature=1e-9) == {0: 50}


def test_a_row_is_drawn_the_same_in_any_company():
    torch.manual_seed(0)
    rows = torch.randn(6, 500)
    own = [
        drawing(top_k=5),
        drawing(),
        drawing(top_p=0.3),
        drawing(min_p=0.5, temperature=0.7),
        drawing(top_k=600),
        drawing(top_p=0.99, temperature=3.0),
    ]
    numbers = [uniform(9, index) for index in range(6)]
    together = draw(rows, own, numbers).tolist()
    alone = [
        draw(rows[at : at + 1], own[at : at + 1], numbers[at : at + 1]).item() for at in range(6)
    ]
    assert together == alone


def test_a_small_change_of_the_scores_hardly_moves_a_draw():
    torch.manual_seed(0)
    rows = torch.randn(2000, 300)
    numbers = [uniform(2, index) for index in range(2000)]
    own = [drawing()] * 2000
    other = rows + 1e-5 * torch.randn_like(rows)
    moved = (draw(rows, own, numbers) != draw(other, own, numbers)).sum()
    assert moved <= 5


def test_presence_counts_once_and_frequency_every_time():
    result = adjusted(
        [1.0, 1.0, 1.0], output=[2, 2, 0], presence_penalty=0.5, frequency_penalty=0.25
    )
    assert result == [0.25, 1.0, 0.0]


def test_presence_and_frequency_leave_the_prompt_alone():
    assert adjusted([1.0, 1.0], prompt=[1], frequency_penalty=2.0) == [1.0, 1.0]


def test_repetition_divides_or_multiplies_for_prompt_and_output_as_transformers_does():
    scores = [3.0, -3.0, 3.0, -3.0]
    expected = RepetitionPenaltyLogitsProcessor(2.0)(
        torch.tensor([[0, 1, 1]]), torch.tensor([scores])
    )
    assert expected.tolist() == [[1.5, -6.0, 3.0, -3.0]]
    assert adjusted(scores, prompt=[0], output=[1, 1], repetition_penalty=2.0) == [
        1.5,
        -6.0,
        3.0,
        -3.0,
    ]


def test_output_is_counted_as_it_grows():
    own = drawing(frequency_penalty=1.0)
    for output, expected in (([1], [0.0, -1.0]), ([1, 1], [0.0, -2.0]), ([1, 1, 0], [-1.0, -2.0])):
        row = torch.tensor([0.0, 0.0])
        own.adjust(row, output)
        assert row.tolist() == expected


def test_bias_is_added_and_ends_are_banned_up_to_min_tokens():
    own = {"ends": [2], "min_tokens": 2, "logit_bias": {0: -1.5, 2: 100.0}}
    assert adjusted([1.0, 1.0, 1.0], output=[0], **own) == [-0.5, 1.0, -math.inf]
    assert adjusted([1.0, 1.0, 1.0], output=[0, 0], **own) == [-0.5, 1.0, 101.0]


def moving(key, tokens, generated=(), *, has_new_token=True):
    """A request in the manager's coming batch."""
    state = RequestState(key, list(tokens), generated_tokens=list(generated))
    return FutureRequestState(state, has_new_token, {}, 1)


def test_a_batch_of_greedy_sequences_is_left_to_the_manager():
    steps = []
    sampler = Sampler({"a": drawing(temperature=0)}.get, lambda: steps.append(1), None)
    sampler.prepare_tensor_args([moving("a", [1])], None)
    assert not sampler.do_processing
    assert steps == [1]


def test_only_rows_that_need_it_are_touched():
    own = {
        "greedy": drawing(prompt=[1], temperature=0),
        "drawn": drawing(prompt=[1], temperature=1.0, seed=4),
        "asked": drawing(prompt=[1], temperature=0, logprobs=2),
    }
    sampler = Sampler(own.get, lambda: None, None)
    sampler.prepare_tensor_args(
        [
            moving("reading", [1, 2], has_new_token=False),
            moving("greedy", [1]),
            moving("gone", [1]),
            moving("drawn", [1, 5], [5]),
            moving("asked", [1]),
        ],
        None,
    )
    assert sampler.do_processing
    scores = torch.tensor([SCORES] * 5)  # a row more than new tokens: the manager pads
    result = sampler(None, scores.clone(), None)
    token = draw(scores[:1], [own["drawn"]], [uniform(4, 2)]).item()
    assert result[2].isinf().nonzero().tolist() == [[token]]
    for row in (0, 1, 3, 4):
        assert result[row].tolist() == SCORES
    (logprob,) = own["asked"].logprobs
    best = torch.tensor(SCORES).log_softmax(0).tolist()
    assert logprob.logprob == pytest.approx(best[0])
    assert logprob.top == ((0, pytest.approx(best[0])), (1, pytest.approx(best[1])))
