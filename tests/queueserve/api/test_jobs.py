"""A request becomes jobs: fields find their places, null is the default, retries are the same."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from queueserve.api.jobs import Identity, chat_jobs, completion_jobs, tenant_of
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.completions import CompletionRequest
from queueserve.errors import InvalidRequestError
from queueserve.protocol import Job, ModelCard, Sampling
from queueserve.settings import ApiSettings

CARD = ModelCard(name="alias", pool="m", context_length=100, engine="fake")
ME = Identity(reply_id="chatcmpl-1", job_id="chatcmpl-1", seed=7)
USER = {"role": "user", "content": "hello you"}
SETTINGS = ApiSettings(queue_timeout=11, request_timeout=22)


def chat(identity=ME, **fields) -> list[Job]:
    body = {"model": "alias", "messages": [USER]} | fields
    return chat_jobs(ChatCompletionRequest.model_validate(body), identity, CARD, SETTINGS)


def completion(prompt, **fields) -> list[Job]:
    body = {"model": "alias", "prompt": prompt} | fields
    return completion_jobs(CompletionRequest.model_validate(body), ME, CARD, SETTINGS)


def test_a_plain_chat():
    assert chat() == [
        Job(
            id="chatcmpl-1-0",
            pool="m",
            model="alias",
            kind="chat",
            messages=(USER,),
            sampling=Sampling(seed=7),
            unset=("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
            tenant="default",
            priority=8,
            cost=258,
            queue_timeout=11,
            timeout=22,
        )
    ]


def test_the_tenant_is_the_keys_then_the_users():
    named = ChatCompletionRequest.model_validate({"model": "m", "messages": [USER], "user": "ann"})
    nameless = ChatCompletionRequest.model_validate({"model": "m", "messages": [USER]})
    assert tenant_of(named, key="key-1") == "key-1"
    assert tenant_of(named) == "ann"
    assert tenant_of(nameless) == "default"
    (job,) = chat_jobs(named, Identity.fresh("chatcmpl", tenant="ann"), CARD, SETTINGS)
    assert job.tenant == "ann"


def test_every_field_finds_its_place():
    (job,) = chat(
        max_completion_tokens=50,
        max_tokens=40,
        temperature=0.5,
        top_p=0.9,
        stop=["a", "b"],
        seed=3,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100, "6": 2.5},
        service_tier="priority",
        metadata={"a": "b"},
        top_k=10,
        min_p=0.1,
        repetition_penalty=1.2,
        min_tokens=2,
        stop_token_ids=[9],
        ignore_eos=True,
        chat_template_kwargs={"thinking": False},
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert job.sampling == Sampling(
        max_tokens=50,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=10,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=1.2,
        logit_bias={5: -100.0, 6: 2.5},
        seed=3,
        stop=("a", "b"),
        stop_token_ids=(9,),
        ignore_eos=True,
    )
    assert (job.priority, job.cost) == (4, 52)
    assert job.template_kwargs == {"thinking": False}
    assert job.continue_final_message


def test_null_is_the_default_everywhere():
    fields = set(ChatCompletionRequest.model_fields) - {"model", "messages"}
    assert chat(**dict.fromkeys(fields)) == chat()
    fields = set(CompletionRequest.model_fields) - {"model", "prompt"}
    assert completion("a", **dict.fromkeys(fields)) == completion("a")


def test_a_value_that_is_set_is_not_the_models_to_decide():
    left_open = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    (job,) = chat()
    assert job.unset == left_open
    (job,) = chat(temperature=1, top_k=-1)
    assert job.unset == ("top_p", "min_p", "repetition_penalty")
    (job,) = chat(top_p=0)
    assert (job.sampling.temperature, job.unset) == (0.0, ())


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"tools": [], "tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"logprobs": False, "top_logprobs": 0},
        {"modalities": ["text"]},
        {"echo": False},
        {"add_generation_prompt": True},
        {"n": 1, "service_tier": "auto"},
        {"reasoning_effort": "high", "verbosity": "low", "store": True, "prediction": {}},
        {"parallel_tool_calls": True, "safety_identifier": "x", "prompt_cache_key": "y"},
        {"nobody_knows_this": [1]},
    ],
)
def test_what_changes_nothing_is_accepted(fields):
    assert chat(**fields) == chat()


def test_best_of_n_changes_nothing():
    assert completion("a", n=2, best_of=2, suffix="") == completion("a", n=2)


def test_the_flex_tier_goes_after_the_others():
    tiers = ("priority", "default", "scale", "flex")
    assert [chat(service_tier=tier)[0].priority for tier in tiers] == [4, 8, 8, 12]


def test_top_p_zero_is_greedy():
    sampling = chat(top_p=0, temperature=2)[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


def test_a_stop_string_may_stand_alone():
    assert chat(stop="end")[0].sampling.stop == ("end",)


def test_choices_have_seeds_in_a_row():
    assert [job.sampling.seed for job in chat(n=3, seed=5)] == [5, 6, 7]
    assert [job.id for job in chat(n=3)] == ["chatcmpl-1-0", "chatcmpl-1-1", "chatcmpl-1-2"]
    assert [job.sampling.seed for job in chat(n=2, seed=2**63 - 1)] == [2**63 - 1, 0]
    assert chat(seed=0)[0].sampling.seed == 0


def test_messages_keep_what_templates_may_use():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
        {"role": "user", "name": "bob", "content": "b"},
    ]
    assert chat(messages=messages)[0].messages == (
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
        {"role": "user", "name": "bob", "content": "b"},
    )


@pytest.mark.parametrize(
    "said, content",
    [
        ({"refusal": "I cannot."}, "I cannot."),
        ({"reasoning_content": "Hm"}, ""),
        ({"content": "a", "refusal": "b"}, "a"),
    ],
)
def test_an_answer_without_a_content_has_one_for_the_template(said, content):
    (_, message, _) = chat(messages=[USER, {"role": "assistant", **said}, USER])[0].messages
    assert message["content"] == content
    assert "refusal" not in message


@pytest.mark.parametrize("said", [{}, {"content": None}, {"content": None, "tool_calls": []}])
def test_an_answer_that_says_nothing_at_all_is_refused(said):
    with pytest.raises(ValidationError, match="needs a content, or calls"):
        chat(messages=[USER, {"role": "assistant", **said}])


@pytest.mark.parametrize(
    "prompt, jobs",
    [
        ("text", ["text"]),
        ("", [""]),
        (["one", "two"], ["one", "two"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt, jobs):
    assert [job.prompt for job in completion(prompt)] == jobs
    assert {job.kind for job in completion(prompt)} == {"completion"}


def test_a_completion_has_sixteen_tokens_unless_it_says_otherwise():
    assert completion("a")[0].sampling.max_tokens == 16
    assert completion("a", max_tokens=3)[0].sampling.max_tokens == 3


def test_the_cost_is_that_of_each_prompt():
    assert [job.cost for job in completion(["a" * 40, "b" * 80], n=2)] == [26, 26, 36, 36]
    assert completion([1, 2, 3])[0].cost == 19


def test_too_many_jobs_are_refused():
    with pytest.raises(InvalidRequestError):
        completion(["a"] * 513, n=2)
    assert len(completion(["a"] * 512, n=2)) == 1024


def key(**change) -> Identity:
    given = {"key": "k", "path": "/p", "tenant": "t", "body": b"{}", "secret": "s"} | change
    return Identity.of_key("cmpl-", **given)


def test_an_idempotency_key_gives_the_same_jobs_again():
    assert chat(key(), n=2) == chat(key(), n=2)
    job = chat(key())[0]
    assert job.id.startswith("idem-")
    assert job.id.endswith("-0")
    assert job.grace == 30.0
    assert key().reply_id == "cmpl-" + job.id.removeprefix("idem-").removesuffix("-0")


def test_tenants_paths_secrets_and_keys_tell_jobs_apart():
    same = {"job_id": key().job_id}
    others = [
        key(tenant="u"),
        key(secret="x"),
        key(key="l"),
        key(path="/q"),
        key(tenant="t:1", key="k"),
        key(tenant="t", key="1:k"),
    ]
    assert len({identity.job_id for identity in others} | set(same.values())) == 7


def test_another_body_gives_other_jobs_under_the_same_ids():
    assert key(body=b"{1}").job_id == key().job_id
    assert chat(key(body=b"{1}")) != chat(key())


@pytest.mark.parametrize("text", ["", "k" * 257])
def test_odd_idempotency_keys_are_refused(text):
    with pytest.raises(InvalidRequestError):
        key(key=text)


def test_requests_without_a_key_share_nothing():
    one, two = Identity.fresh("chatcmpl-"), Identity.fresh("chatcmpl-")
    assert one.job_id != two.job_id
    assert one.seed != two.seed
    assert one.reply_id == one.job_id
    assert (one.digest, one.grace) == ("", 0.0)


def test_a_long_prompt_is_not_multiplied_in_redis():
    long = {"role": "user", "content": "a" * 1_000_000}
    assert len(chat(messages=[long], n=4)) == 4
    with pytest.raises(InvalidRequestError) as caught:
        chat(messages=[long], n=5)
    assert caught.value.param == "n"
