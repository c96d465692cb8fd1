"""What a chat template is told of tools, calls and results."""

import json

import pytest

from queueserve.encoding import decode_job, encode
from queueserve.protocol import Constraint, Job
from workers.engines.fake_tokens import FakeTokenizer
from workers.prompting import Prompter
from workers.templates import load_template
from workers.templates.dialects import Dialect, choose_dialect

WEATHER = {"name": "get_weather", "description": "Le temps", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": WEATHER}
ASKED = {"role": "user", "content": "How is Paris?"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Pàris"}'},
}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "22 °C"}


class Recorder(FakeTokenizer):
    async def encode(self, text, *, add_special):
        self.text = text
        return ()


async def prompt(template, *messages, dialect=None, **fields):
    tokenizer = Recorder()
    job = Job(id="j", pool="m", model="m", kind="chat", messages=messages, **fields)
    prompter = Prompter(tokenizer, template, dialect or choose_dialect(template))
    made = await prompter.prompt(decode_job(encode(job)))
    return tokenizer.text, made.opening


async def rendered(template, *messages, **fields):
    return (await prompt(template, *messages, **fields))[0]


CHATML = load_template("chatml")


async def test_a_template_without_tools_gets_them_in_the_system_message():
    text = await rendered(CHATML, ASKED, tools=(TOOL,))
    system, rest = text.split("<|im_end|>\n", 1)
    assert system.startswith("<|im_start|>system\nYou can use these tools")
    assert json.dumps(WEATHER, ensure_ascii=False) in system.splitlines()
    assert '{"name": "<name of the tool>", "arguments": {"<parameter>": <value>}}' in system
    assert rest.startswith("<|im_start|>user\nHow is Paris?<|im_end|>")
    both = await rendered(
        CHATML, {"role": "developer", "content": "Be kind."}, ASKED, tools=(TOOL,)
    )
    assert both.startswith("<|im_start|>system\nBe kind.\n\nYou can use these tools")


async def test_a_template_without_a_system_role_gets_them_before_the_question():
    template = (
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    text = await rendered(template, ASKED, tools=(TOOL,))
    assert text.startswith("[user:You can use these tools")
    assert text.endswith("\n\nHow is Paris?]")


async def test_a_template_without_tools_gets_calls_and_results_as_text():
    more = {"role": "user", "content": "Thanks. And Rome?"}
    text = await rendered(CHATML, ASKED, CALLED, RESULT, more)
    assert text == (
        "<|im_start|>user\nHow is Paris?<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "get_weather", "arguments": {"city": "Pàris"}}<|im_end|>\n'
        "<|im_start|>user\nResult of get_weather:\n22 °C\n\nThanks. And Rome?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_several_calls_are_a_list_and_their_results_one_message():
    calls = [CALL, CALL | {"id": "call_2"}]
    called = {"role": "assistant", "content": "Let me see.", "tool_calls": calls}
    text = await rendered(CHATML, ASKED, called, RESULT, RESULT | {"tool_call_id": "call_2"})
    one = '{"name": "get_weather", "arguments": {"city": "Pàris"}}'
    assert f"Let me see.\n\n[{one}, {one}]<|im_end|>" in text
    assert text.count("Result of get_weather:\n22 °C") == 2
    assert text.count("<|im_start|>user") == 2


async def test_parts_are_one_text_there():
    parts = [{"type": "text", "text": "22"}, {"type": "text", "text": "°C"}]
    text = await rendered(CHATML, ASKED, CALLED, RESULT | {"content": parts})
    assert "Result of get_weather:\n22\n°C<|im_end|>" in text


KNOWING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<{{ c.id }} {{ c.function.name }} CALL>"
    "{{ 'null' if m.content is none else 'text' }}{% endfor %}"
    "{% elif m.role == 'tool' %}<{{ m.name }} {{ m.tool_call_id }}={{ m.content }}>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
AS_OBJECT = KNOWING.replace("CALL", "{{ c.function.arguments | tojson }}")
AS_TEXT = KNOWING.replace("CALL", "{{ 'args ' + c.function.arguments }}")


async def test_a_template_that_knows_tools_gets_them_in_their_own_form():
    text = await rendered(AS_OBJECT, ASKED, CALLED, RESULT, tools=(TOOL,))
    assert text == (
        f"{json.dumps([TOOL], ensure_ascii=False)}How is Paris?"
        '<call_1 get_weather {"city": "Pàris"}>null<get_weather call_1=22 °C>'
    )


async def test_arguments_are_text_where_the_template_adds_them_to_text():
    text = await rendered(AS_TEXT, ASKED, CALLED)
    assert text == 'How is Paris?<call_1 get_weather args {"city": "Pàris"}>null'


async def test_content_is_empty_where_the_template_cannot_take_none():
    template = AS_OBJECT.replace("{{ 'null' if", "{{ m.content + 'x' }}{{ 'null' if")
    assert (await rendered(template, ASKED, CALLED)).endswith(">xtext")


async def test_arguments_that_are_no_json_stay_as_they_are():
    bad = CALL | {"function": {"name": "get_weather", "arguments": '{"city": '}}
    text = await rendered(AS_OBJECT, ASKED, CALLED | {"tool_calls": [bad]})
    assert '"{\\"city\\": "' in text


async def test_ids_have_nine_characters_for_mistral():
    template = AS_OBJECT.replace(
        "<{{ c.id }}",
        "{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}<{{ c.id }}",
    )
    text = await rendered(template, ASKED, CALLED, RESULT, dialect=Dialect("mistral"))
    _, called, answered = text.split("<")
    short = called.split()[0]
    assert len(short) == 9
    assert answered == f"get_weather {short}=22 °C>"


# Reasoning that the prompt opens

OPENING = "{{ messages[0].content }}{% if add_generation_prompt %}A: {{ '<think>\n' }}{% endif %}"


async def test_what_the_prompt_opens_is_seen_in_the_output():
    assert await prompt(OPENING, ASKED) == ("How is Paris?A: <think>\n", "<think>\n")


@pytest.mark.parametrize(
    "dialect,fields",
    [
        (Dialect(), {}),
        (Dialect("json", "think"), {"constraint": Constraint("json_object")}),
        (Dialect("json", "mistral"), {}),
    ],
)
async def test_else_it_is_not(dialect, fields):
    assert (await prompt(OPENING, ASKED, dialect=dialect, **fields))[1] == ""


async def test_an_output_that_is_bound_is_asked_for_without_reasoning():
    template = "{{ messages[0].content }}{{ enable_thinking is defined and not enable_thinking }}"
    bound = Constraint("json_object")
    assert await rendered(template, ASKED) == "How is Paris?False"
    assert await rendered(template, ASKED, constraint=bound) == "How is Paris?True"
    said = {"enable_thinking": True}
    text = await rendered(template, ASKED, constraint=bound, template_kwargs=said)
    assert text == "How is Paris?False"
