import asyncio
import threading

import pytest

from queueserve.encoding import decode_job, encode
from queueserve.errors import EngineError, InvalidRequestError
from queueserve.protocol import Job
from workers.engines.fake_tokens import BOS, FakeTokenizer
from workers.prompting import Prompter
from workers.templates import load_template

CHATML = load_template("chatml")
PARTS = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"


def chat(*messages, **options):
    return Job(id="j", pool="m", model="m", kind="chat", messages=messages, **options)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


class Recorder(FakeTokenizer):
    """A tokenizer that keeps what it was given."""

    async def encode(self, text, *, add_special):
        self.given = (text, add_special)
        return await super().encode(text, add_special=add_special)


async def rendered(job, template=CHATML):
    """The text of the job's prompt; through JSON, as a worker gets it."""
    tokenizer = Recorder()
    await Prompter(tokenizer, template).encode(decode_job(encode(job)))
    text, add_special = tokenizer.given
    assert not add_special
    return text


async def refusal(job, template=CHATML):
    with pytest.raises(InvalidRequestError) as caught:
        await Prompter(FakeTokenizer(), template).encode(job)
    return caught.value


async def test_a_completion_prompt_gets_the_models_special_tokens():
    job = Job(id="j", pool="m", model="m", kind="completion", prompt="Hé")
    assert await Prompter(FakeTokenizer(), None).encode(job) == (BOS, 72, 195, 169)


async def test_token_ids_are_taken_as_they_are():
    job = Job(id="j", pool="m", model="m", kind="completion", prompt=(5, 4, 300))
    assert await Prompter(FakeTokenizer(), None).encode(decode_job(encode(job))) == (5, 4, 300)


async def test_messages_go_through_the_template_without_further_special_tokens():
    assert await rendered(chat(user("Hi"))) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_the_developer_role_is_the_system_role():
    text = await rendered(chat({"role": "developer", "content": "Short."}, user("Hi")))
    assert text.startswith("<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\n")


async def test_keys_without_a_value_are_left_out():
    job = chat({"role": "user", "content": "Hi", "name": None})
    template = "{{ messages[0].content }}{{ messages[0].name is defined }}"
    assert await rendered(job, template) == "HiFalse"


async def test_text_parts_become_one_string_where_the_template_takes_strings():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert await rendered(chat(user(parts))) == await rendered(chat(user("one\ntwo")))


async def test_strings_become_parts_where_the_template_takes_parts_only():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert await rendered(chat(user(parts), assistant("three")), PARTS) == "<one><two><three>"


@pytest.mark.parametrize(
    "content,words",
    [
        ([{"type": "image_url", "image_url": {"url": "http://x"}}], "of type 'image_url'"),
        ([{"type": "text"}], "needs a text"),
        (["words"], "of type 'str'"),
        ({"type": "text", "text": "x"}, "a string or a list"),
    ],
)
async def test_content_that_is_not_text_is_refused(content, words):
    error = await refusal(chat(user(content)))
    assert words in error.message
    assert error.param == "messages"


async def test_tools_and_template_options_reach_the_template():
    job = chat(user("Hi"), tools=({"name": "é"},), template_kwargs={"enable_thinking": False})
    template = "{{ tools | tojson }}{{ enable_thinking }}{{ messages[0].content }}"
    assert await rendered(job, template) == '[{"name": "é"}]FalseHi'


async def test_template_options_cannot_replace_the_messages():
    error = await refusal(chat(user("Hi"), template_kwargs={"messages": [], "tools": 1}))
    assert error.message == "chat_template_kwargs cannot set messages, tools"
    assert error.param == "chat_template_kwargs"


async def test_no_messages_are_refused():
    assert (await refusal(chat())).param == "messages"


async def test_a_refusal_of_the_template_is_the_requests_error():
    error = await refusal(chat(user("Hi")), "{{ raise_exception('Only tools here') }}")
    assert (error.code, error.message) == ("invalid_value", "Only tools here")


async def test_a_model_without_a_template_says_what_to_do():
    error = await refusal(chat(user("Hi")), None)
    assert "--chat-template NAME or FILE; the names are alpaca, chatml," in error.message


def test_a_broken_template_stops_the_worker_at_its_start():
    with pytest.raises(EngineError, match="does not parse: line 1"):
        Prompter(FakeTokenizer(), "{% if %}")


TRIMMING = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"


@pytest.mark.parametrize(
    "template,content,text",
    [
        (CHATML, "The sky", "<|im_start|>assistant\nThe sky"),
        (CHATML, "The sky is ", "<|im_start|>assistant\nThe sky is "),
        (CHATML, "Hi", "<|im_start|>assistant\nHi"),  # the same text comes twice
        (TRIMMING, "The sky is ", "[Hi][The sky is"),
        (PARTS, [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}], "<Hi><a><b "),
    ],
)
async def test_the_final_message_stays_open_to_be_continued(template, content, text):
    job = chat(user("Hi"), assistant(content), continue_final_message=True)
    assert (await rendered(job, template)).endswith(text)


@pytest.mark.parametrize(
    "template,content,words",
    [
        (CHATML, None, "no content to continue"),
        (PARTS, [], "no content to continue"),
        ("{{ messages[0].content }}", "The sky", "changes the final message"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "The sky", "changes"),
        ("{{ messages[-1].content.split()[-1] }}", "The sky ", "changes"),
    ],
)
async def test_what_cannot_be_continued_is_refused(template, content, words):
    job = chat(user("Hi"), assistant(content), continue_final_message=True)
    error = await refusal(job, template)
    assert words in error.message
    assert error.param == "messages"


async def test_a_long_conversation_is_rendered_beside_the_event_loop(monkeypatch):
    threads = []
    render = Prompter._render

    def spy(*args):
        threads.append(threading.current_thread() is threading.main_thread())
        return render(*args)

    monkeypatch.setattr(Prompter, "_render", staticmethod(spy))
    long = [user("word " * 100), assistant("answer " * 100)] * 20
    short, whole = await asyncio.gather(rendered(chat(user("Hi"))), rendered(chat(*long)))
    assert threads == [True, False]
    assert len(whole) > 24_000
    assert whole.endswith("<|im_start|>assistant\n")
    assert short.startswith("<|im_start|>user\nHi")
