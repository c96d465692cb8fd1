"""Our rendering against `apply_chat_template`, on templates in the style of real models."""

import json

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from queueserve.errors import InvalidRequestError
from queueserve.protocol import Job
from workers.engines.fake_tokens import FakeTokenizer
from workers.prompting import Prompter
from workers.templates import known_templates, load_template

CHATML = """\
{% if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{% endif %}
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {% if message['role'] == 'assistant' %}
        {% generation %}
            {{- message['content'] + '<|im_end|>' + '\\n' -}}
        {% endgeneration %}
    {% else %}
        {{- message['content'] + '<|im_end|>' + '\\n' -}}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' -}}
{% endif %}
"""
LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

{% if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
Today Date: {{ date_string }}

{% if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}<|eot_id|>
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user and assistant roles") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and message == user_messages[-1] %}
            {{- "[AVAILABLE_TOOLS]" + tools | tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content if message.content is string else '' %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TEMPLATES = {"chatml-style": CHATML, "llama": LLAMA, "mistral-style": MISTRAL, "gemma": GEMMA}
TEMPLATES |= {"qwen": QWEN} | {name: load_template(name) for name in known_templates()}

USER = {"role": "user", "content": "  What is 2 + 2?\n"}
ANSWER = {"role": "assistant", "content": "Four: <b>4</b> & 四, é. "}
SYSTEM = {"role": "system", "content": "You are terse."}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Añade <x> & 'y'", "parameters": {"z": 1, "a": [2]}},
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"x": "é"}}}],
}
RESULT = {"role": "tool", "content": "4"}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "And 3 + 3?"}],
    "thought": [USER, {"role": "assistant", "content": "<think>\nx\n</think>\n\n4"}, USER],
    "tools": [USER, CALL, RESULT],
    "two users": [USER, USER],
}
# Those that do not are told in words, which is tested in test_tools.
SHOW_TOOLS = {"llama", "mistral-style", "qwen"}
SHOW_CALLS = {"llama", "qwen"}


def comparable(template: str, conversation: str) -> bool:
    return conversation != "tools" or template in SHOW_CALLS


def as_sent(message):
    """The message as a client sends it: arguments are text there, not an object."""
    if "tool_calls" not in message:
        return message
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


class Recorder(FakeTokenizer):
    """A tokenizer that keeps the text it was given."""

    def __init__(self):
        super().__init__()
        self.special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}

    async def encode(self, text, *, add_special):
        self.text = text
        return ()


@pytest.fixture(scope="module")
def reference():
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")


async def ours(template, messages, *, tools=(), continue_final_message=False, **kwargs):
    tokenizer = Recorder()
    job = Job(
        id="j",
        pool="m",
        model="m",
        kind="chat",
        messages=tuple(map(as_sent, messages)),
        tools=tools,
        continue_final_message=continue_final_message,
        template_kwargs=kwargs,
    )
    await Prompter(tokenizer, template).encode(job)
    return tokenizer.text


async def both(reference, template, messages, **options):
    """Our text and theirs; None where it was refused."""
    try:
        mine = await ours(template, messages, **options)
    except InvalidRequestError:
        mine = None
    options["tools"] = options.get("tools")
    options["add_generation_prompt"] = not options.get("continue_final_message")
    try:
        theirs = reference.apply_chat_template(
            messages, chat_template=template, tokenize=False, **options
        )
    except (TemplateError, TypeError, ValueError):
        theirs = None
    return mine, theirs


@pytest.mark.parametrize(
    "template,conversation",
    [(one, other) for one in TEMPLATES for other in CONVERSATIONS if comparable(one, other)],
)
async def test_the_prompt_is_the_one_of_transformers(reference, template, conversation):
    messages = CONVERSATIONS[conversation]
    mine, theirs = await both(reference, TEMPLATES[template], messages)
    assert mine == theirs
    tools = (TOOL,) if template in SHOW_TOOLS else ()
    mine, theirs = await both(
        reference, TEMPLATES[template], messages, tools=tools, enable_thinking=False
    )
    assert mine == theirs


@pytest.mark.parametrize("final", ["Four is", "Four is ", " \n", "Hi\n\n", "", "What is 2 + 2?"])
@pytest.mark.parametrize("template", TEMPLATES)
async def test_an_open_final_message_is_cut_as_transformers_does(reference, template, final):
    messages = [SYSTEM, USER, {"role": "assistant", "content": final}]
    mine, theirs = await both(reference, TEMPLATES[template], messages, continue_final_message=True)
    assert mine == theirs


async def test_parts_are_joined_by_the_template_as_in_transformers(reference):
    parts = [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]
    system = {"role": "system", "content": parts[1:]}
    for messages in ([{"role": "user", "content": parts}], [system, USER]):
        mine, theirs = await both(reference, GEMMA, messages)
        assert mine == theirs
    assert "user\ntwo\n\nWhat" in mine


async def test_most_of_the_comparisons_are_of_texts(reference):
    texts = refusals = 0
    for name, template in TEMPLATES.items():
        for conversation, messages in CONVERSATIONS.items():
            if not comparable(name, conversation):
                continue
            mine, _ = await both(reference, template, messages)
            texts += mine is not None
            refusals += mine is None
    assert (texts, refusals) == (66, 1)
