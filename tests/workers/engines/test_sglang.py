"""SGLang's own checks of what the adapter hands it, where SGLang is installed. No model runs.

Its arguments, its parameters and the requests that they become are plain objects, which judge names
and values themselves.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from queueserve.errors import EngineError, InvalidRequestError, WorkerLostError
from queueserve.protocol import Constraint, Sampling
from workers.engines.base import Sequence

pytest.importorskip("sglang.srt.server_args")

from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from workers.engines.sglang_arguments import engine_args
from workers.engines.sglang_requests import check, output, parameters
from workers.engines.sglang_serving import Serving

VOCABULARY = 1000
ENDS = frozenset({2})
CHOICE = Constraint("choice", '["a", "b"]')


def sequence(*, generated=(), constraint=None, **sampling) -> Sequence:
    return Sequence(
        id="s",
        prompt=(1, 2, 3),
        generated=generated,
        sampling=Sampling(**sampling),
        constraint=constraint,
    )


def judged(**about) -> SamplingParams:
    """What SGLang makes of a sequence's parameters, verified by it."""
    params = SamplingParams(**parameters(sequence(**about), left=20, ends=ENDS))
    params.verify(VOCABULARY)
    return params


def test_arguments_reach_sglang():
    options = {"--max-running-requests": 8, "--context-length": None, "--tp-size": 2}
    adapters = {"fr": Path("/adapters/fr"), "de": Path("/adapters/de")}
    args = engine_args("/model", options, adapters=adapters, given=("--mem-fraction-static", "0.7"))
    assert (args.model_path, args.max_running_requests, args.tp_size) == ("/model", 8, 2)
    assert args.enable_lora
    assert args.lora_paths == ["fr=/adapters/fr", "de=/adapters/de"]
    assert args.mem_fraction_static == 0.7
    assert args.enable_priority_scheduling
    assert args.schedule_low_priority_values_first
    assert args.grammar_backend == "llguidance"
    assert args.incremental_streaming_output


def test_an_operators_arguments_go_before_ours():
    args = engine_args("/model", {"--tp-size": 2}, adapters={}, given=("--tp-size", "4"))
    assert args.tp_size == 4


def test_an_unknown_argument_is_an_error():
    with pytest.raises(EngineError, match="--no-such-thing"):
        engine_args("/model", {}, adapters={}, given=("--no-such-thing", "1"))


def test_greedy_is_greedy():
    assert judged(temperature=0.0).top_k == 1


def test_off_means_off():
    plain = judged()
    assert (plain.top_p, plain.min_p, plain.repetition_penalty) == (1.0, 0.0, 1.0)
    assert plain.top_k == SamplingParams().top_k


def test_every_value_reaches_sglang():
    given = {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "presence_penalty": 0.5, "temperature": 0.7}
    params = judged(**given, logit_bias={7: -3.0}, seed=2**64 - 1, stop_token_ids=(9,))
    assert {name: getattr(params, name) for name in given} == given
    assert params.logit_bias == {"7": -3.0}
    assert params.stop_token_ids == {9}
    assert params.max_new_tokens == 20


@pytest.mark.parametrize(
    "wrong", [{"logit_bias": {VOCABULARY: 1.0}}, {"repetition_penalty": 3.0}, {"top_p": 0.0}]
)
def test_sglang_refuses_what_it_cannot_draw_with(wrong):
    with pytest.raises(ValueError, match="must"):
        judged(**wrong)


def test_constraints_are_grammars_that_llguidance_reads():
    llguidance = pytest.importorskip("llguidance")
    grammar = judged(constraint=CHOICE).ebnf
    compiled = llguidance.grammar_from("ebnf", grammar)  # as SGLang's backend for llguidance does
    assert not llguidance.LLMatcher.validate_grammar(compiled)


@pytest.mark.parametrize("asked", [{"stop_token_ids": (9,)}, {"constraint": CHOICE}])
def test_the_models_own_ends_are_banned_where_other_ends_count(asked):
    params = judged(ignore_eos=True, **asked)
    assert not params.ignore_eos
    assert params.logit_bias["2"] < -100
    assert judged(ignore_eos=True).logit_bias is None


def test_what_sglang_would_not_do_is_refused():
    with pytest.raises(InvalidRequestError, match="sglang"):
        check(sequence(min_tokens=2, constraint=CHOICE), seeds_count=False)


@pytest.mark.parametrize("asked", [{"constraint": CHOICE}, {"repetition_penalty": 1.5}])
def test_what_cannot_go_on_here_goes_elsewhere(asked):
    check(sequence(**asked), seeds_count=True)
    with pytest.raises(WorkerLostError):
        check(sequence(generated=(4,), **asked), seeds_count=True)


def test_min_p_is_refused_where_it_would_end_sglangs_scheduler():
    check(sequence(min_p=0.1), seeds_count=False)
    with pytest.raises(InvalidRequestError, match="min_p"):
        check(sequence(min_p=0.1), seeds_count=True)
    check(sequence(min_p=0.1, temperature=0.0), seeds_count=True)
    assert judged(min_p=0.1, temperature=0.0).min_p == 0.0


def test_penalties_of_what_another_worker_generated_become_biases():
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {4: 1.0}}
    bias = judged(generated=(4, 5, 5), **penalties).logit_bias
    assert bias == {"4": 0.25, "5": -1.0}


def test_requests_are_single_ones():
    asked = parameters(sequence(), left=20, ends=ENDS)
    request = GenerateReqInput(
        input_ids=[1, 2, 3], sampling_params=asked, stream=True, rid="r", top_logprobs_num=2
    )
    vector = EmbeddingReqInput(input_ids=[1, 2, 3])
    for one in (request, vector):
        one.normalize_batch_and_arguments()
        assert one.is_single
    assert request.rid == "r"
    assert request.lora_path is None


def chunk(tokens, finish=None, **about):
    return {"output_ids": list(tokens), "meta_info": {"finish_reason": finish} | about}


def test_the_token_that_ends_it_is_left_out():
    end = {"type": "stop", "matched": 9}
    got = output(sequence(), chunk([5, 9], end), first=False)
    assert (got.tokens, got.finish) == ((5,), "stop")


def test_logprobs_are_those_of_the_tokens():
    end = {"type": "stop", "matched": 9}
    own = [(-0.5, 5, None), (-0.1, 9, None)]
    best = [[(-0.5, 5, None), (-1.5, 6, None)], [(-0.1, 9, None), (-3.0, 5, None)]]
    given = chunk([5, 9], end, output_token_logprobs=own, output_top_logprobs=best)
    (value,) = output(sequence(logprobs=2), given, first=False).logprobs
    assert (value.logprob, value.top) == (-0.5, ((5, -0.5), (6, -1.5)))


def test_an_abort_is_an_error_with_its_reason():
    end = {"type": "abort", "message": "the grammar is broken", "status_code": 400}
    got = output(sequence(constraint=CHOICE), chunk([], end), first=True)
    assert isinstance(got.error, InvalidRequestError)
    assert got.error.message == "the grammar is broken"


class Streaming:
    """An Engine of SGLang whose every stream gives these chunks, and then ends."""

    loop = None

    def __init__(self, *chunks, last_takes=0.0):
        self.aborted = []
        self.tokenizer_manager = self
        self._chunks, self._last_takes = chunks, last_takes

    async def async_generate(self, rid, **_):
        self.rid = rid
        return self._stream()

    async def _stream(self):
        for given in self._chunks:
            yield given
        await asyncio.sleep(self._last_takes)

    def abort_request(self, *, rid):
        self.aborted.append(rid)


def serving(llm):
    given = []
    info = SimpleNamespace(context_length=100)
    about = {
        "info": info,
        "ends": ENDS,
        "vocabulary": VOCABULARY,
        "dimensions": 0,
        "seeds_count": True,
    }
    return Serving(SimpleNamespace(llm=llm, **about), given.extend), given


@pytest.mark.parametrize("chunks", [(), (chunk([5]),), (chunk([5]), {"output_ids": [6]})])
async def test_a_stream_that_breaks_off_is_an_error_and_is_aborted(chunks):
    llm = Streaming(*chunks)
    one, given = serving(llm)
    await one.generate(sequence())
    await asyncio.sleep(0)
    *before, (_, last) = given
    assert isinstance(last.error, EngineError)
    assert [output.error for _, output in before] == [None] * len(before)
    assert llm.aborted == [llm.rid]


async def test_a_stream_that_has_ended_is_not_aborted():
    llm = Streaming(chunk([5]), chunk([6], {"type": "length"}))
    one, given = serving(llm)
    await one.generate(sequence())
    await asyncio.sleep(0)
    assert [(output.tokens, output.finish) for _, output in given] == [
        ((5,), None),
        ((6,), "length"),
    ]
    assert llm.aborted == []


async def test_what_is_cancelled_is_aborted_and_says_nothing_more():
    llm = Streaming(chunk([5]), last_takes=60)
    one, given = serving(llm)
    running = asyncio.create_task(one.generate(sequence()))
    async with asyncio.timeout(10):
        while not given:  # noqa: ASYNC110  # it calls nobody back
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait({running})
    assert llm.aborted == [llm.rid]
    assert len(given) == 1
