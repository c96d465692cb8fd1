"""What a server streams, as the text that our parsers take apart again; and what jobs become."""

from __future__ import annotations

import json

import pytest

from queueserve.api.parsers import make_parser
from queueserve.api.parsers.pieces import Arguments, Call, Content, Reasoning
from queueserve.errors import (
    ContextLengthExceededError,
    EngineError,
    InvalidRequestError,
)
from queueserve.protocol import Constraint, Job, Sampling
from workers.adapters import EngineOptions, checked_api_base, make_engine
from workers.engines.openai_answer import Answer, EventReader
from workers.engines.openai_requests import refusal, request_of
from workers.models import resolve

MUST_CALL = Constraint("json_schema", "{}", "tool_choice")


def job(**changes):
    fields = {"id": "j", "pool": "m", "model": "m", "kind": "chat", "messages": ({"role": "user"},)}
    return Job(**(fields | changes))


def delta(reason=None, **fields):
    return {"choices": [{"delta": fields, "finish_reason": reason}]}


def whole(reason=None, **fields):
    return {"choices": [{"message": fields, "finish_reason": reason}]}


def call(index, name=None, arguments=None, call_id=None):
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "function": function}


def written(events, asked=None, most=100):
    answer = Answer(asked or job())
    pieces = [piece for event in events for piece in answer.take(event)]
    return "".join(pieces + answer.end(most=most))


def parsed(text, **parser):
    parser = make_parser(
        **({"tools": "hermes", "names": ("f", "g"), "reasoning": "think"} | parser)
    )
    return parser.feed(text) + parser.end()


def calls_in(pieces):
    calls = []
    for piece in pieces:
        if isinstance(piece, Call):
            calls.append([piece.name, ""])
        elif isinstance(piece, Arguments):
            calls[-1][1] += piece.text
    return [(name, json.loads(arguments)) for name, arguments in calls]


def text_in(pieces, kind):
    return "".join(piece.text for piece in pieces if isinstance(piece, kind))


@pytest.mark.parametrize(
    "parts",
    [
        [call(0, "f", '{"a":', "x"), call(0, None, " 1}"), call(1, "g", "", "y")],
        [call(0, "f", '{"a": 1}', "x"), call(0, "g", "{}", "y")],  # all with the index 0
        [call(0, "f", {"a": 1}, "x"), call(1, "g", None, "y")],
    ],
)
@pytest.mark.parametrize("bound", [False, True])
def test_calls_are_written_as_they_are_parsed(parts, bound):
    asked = job(constraint=MUST_CALL) if bound else job()
    events = [delta(tool_calls=[part]) for part in parts] + [delta("tool_calls")]
    parser = {"tools": "json", "reasoning": None} if bound else {}
    assert calls_in(parsed(written(events, asked), **parser)) == [("f", {"a": 1}), ("g", {})]


def test_reasoning_and_content_and_calls_are_told_apart():
    events = [
        delta(role="assistant", content=None),
        delta(reasoning_content="Well"),
        delta(reasoning=", then."),
        delta(content="Here."),
        delta(tool_calls=[call(0, "f", "{}", "x")]),
        delta("tool_calls"),
    ]
    pieces = parsed(written(events))
    assert text_in(pieces, Reasoning) == "Well, then."
    assert text_in(pieces, Content).strip() == "Here."
    assert calls_in(pieces) == [("f", {})]


def test_a_bound_answer_has_no_reasoning():
    events = [delta(reasoning="Hm."), delta("stop", content="{}")]
    assert written(events, job(constraint=Constraint("json_object"))) == "{}"


def test_a_call_that_must_come_and_does_not_is_an_error():
    with pytest.raises(EngineError, match="made no call"):
        written([delta(content="No."), delta("stop")], job(constraint=MUST_CALL))


def test_a_stop_string_that_the_server_names_is_told():
    events = [delta(content="so"), {"choices": [{"finish_reason": "stop", "stop_reason": "END"}]}]
    assert written(events, job(sampling=Sampling(stop=("END",)))) == "soEND"
    assert written(events) == "so"


def test_the_servers_count_of_tokens_counts_within_a_bound():
    answer = Answer(job())
    assert answer.take(delta("stop", content="two words")) == ["two words"]
    answer.take({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}})
    assert answer.end(most=100) == ["", "", ""]
    assert answer.end(most=2) == ["", ""]
    assert answer.prompt_tokens == 7


def test_an_answer_in_one_piece_has_all_of_it():
    calls = [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "g"}}]
    message = {"reasoning_content": "Well.", "content": "Here.", "tool_calls": calls}
    pieces = parsed(written([whole("tool_calls", **message)]))
    assert text_in(pieces, Reasoning) == "Well."
    assert text_in(pieces, Content).strip() == "Here."
    assert calls_in(pieces) == [("f", {}), ("g", {})]


def test_events_are_read_wherever_their_bytes_are_cut():
    separator = chr(0x2028)  # a line's end for many, and not for this format
    events = [delta(content=f"a{separator}b"), delta("stop", content="\u00e9")]
    lines = [json.dumps(event, ensure_ascii=False) for event in events]
    data = ": a comment\n\n" + "".join(f"data: {line}\r\n\r\n" for line in lines)
    data = (data + "data: [DONE]\n\n").encode()
    for cut in range(len(data)):
        reader = EventReader()
        assert reader.feed(data[:cut]) + reader.feed(data[cut:]) == events
        assert reader.done


def test_what_is_no_event_is_an_error():
    with pytest.raises(EngineError, match="no JSON object"):
        EventReader().feed(b"data: <html>\n")


@pytest.mark.parametrize(
    "status,body,kind,says",
    [
        (400, {"error": {"message": "bad n", "param": "n"}}, InvalidRequestError, "bad n"),
        (422, {"detail": "no"}, InvalidRequestError, "no"),
        (400, {"error": "plain"}, InvalidRequestError, "plain"),
        (
            400,
            {"error": {"message": "long", "code": "context_length_exceeded"}},
            ContextLengthExceededError,
            "long",
        ),
        (429, {"error": {"message": "slow down"}}, EngineError, "429: slow down"),
        (503, "gone fishing", EngineError, "503: gone fishing"),
        (401, {"error": {"message": "bad key sk-1"}}, EngineError, "refuses the worker's key"),
    ],
)
def test_a_refusal_is_passed_on(status, body, kind, says):
    error = refusal(status, body)
    assert type(error) is kind
    assert says in error.message
    assert "sk-1" not in error.message


def test_an_error_in_a_stream_is_raised():
    with pytest.raises(EngineError, match="out of memory"):
        Answer(job()).take({"error": {"message": "out of memory", "code": 500}})


def test_a_request_says_what_was_asked_for_and_no_more():
    sampling = Sampling(max_tokens=5, top_k=4, seed=3, logit_bias={7: 1.5}, stop=("x",))
    unset = ("temperature", "top_p", "min_p", "repetition_penalty")
    path, body = request_of(job(sampling=sampling, unset=unset), model="M", owner="vllm")
    assert path == "chat/completions"
    assert body == {
        "model": "M",
        "messages": ({"role": "user"},),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "top_k": 4,
        "seed": 3,
        "logit_bias": {"7": 1.5},
        "stop": ("x",),
    }


def test_a_constraint_that_the_server_may_not_know_is_refused():
    asked = job(constraint=Constraint("regex", "a+", "guided_regex"))
    _, body = request_of(asked, model="M", owner="vllm")
    assert body["structured_outputs"] == {"regex": "a+"}
    with pytest.raises(InvalidRequestError) as refused:
        request_of(asked, model="M", owner="llamacpp")
    assert refused.value.param == "guided_regex"


def test_the_servers_address_and_model_must_be_given():
    assert checked_api_base("http://h:1") == "http://h:1/v1"
    assert checked_api_base("https://h/v1beta/openai/") == "https://h/v1beta/openai/"
    with pytest.raises(EngineError, match="--model-path"):
        resolve(None, "openai")
    source = resolve("org/some-model", "openai")
    assert (source.path, source.name) == ("org/some-model", "some-model")
    with pytest.raises(EngineError, match="--api-base"):
        make_engine(source, EngineOptions(api_base="h:1"))
