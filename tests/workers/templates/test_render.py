import pytest

import workers.templates.render as render_module
from queueserve.errors import EngineError, InvalidRequestError
from workers.templates.render import ChatTemplate

HELLO = [{"role": "user", "content": "Hello"}]


def render(source, messages=HELLO, **options):
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **options)


def test_blocks_are_trimmed_as_hugging_face_does():
    source = (
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}"
    )
    assert render(source) == "Hello\n"


def test_the_variables_of_a_template():
    source = "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}|{{ x }}|{{ tools is none }}|"
    source += "{{ documents is none }}|{{ add_generation_prompt }}"
    assert render(source, template_kwargs={"x": 1}) == "<s>Hello|1|True|True|True"
    options = {"tools": [{"name": "f"}], "add_generation_prompt": False}
    assert render(source, **options) == "<s>Hello||False|True|False"


def test_json_is_written_for_people_not_for_html():
    source = "{{ tools | tojson }}{{ tools | tojson(indent=1) }}"
    assert render(source, tools=[{"a": "é<'>"}]) == '[{"a": "é<\'>"}][\n {\n  "a": "é<\'>"\n }\n]'
    assert render(
        "{{ tools | tojson(sort_keys=true, ensure_ascii=true) }}", tools=[{"b": "é"}]
    ) == ('[{"b": "\\u00e9"}]')


def test_generation_tags_and_loop_controls_are_known():
    source = "{% for i in range(9) %}{% generation %}{{ i }}{% endgeneration %}"
    source += "{% if i == 2 %}{% break %}{% endif %}{% endfor %}"
    assert render(source) == "012"


def test_the_date_can_be_written():
    assert render("{{ strftime_now('%Y') | length }}") == "4"


def test_a_refusal_has_the_words_of_the_template():
    with pytest.raises(InvalidRequestError) as caught:
        render("{{ raise_exception('roles must alternate: ' + messages[0].role) }}")
    assert caught.value.message == "roles must alternate: user"
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source,reason",
    [
        ("{{ messages[3].content + 'x' }}", "has no element 3"),
        ("{{ messages[0].content + none }}", "can only concatenate str"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].nothing.at_all }}", "has no attribute 'nothing'"),
        ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "attribute '__class__' of 'str' object is unsafe"),
        ("{{ range(999999999) }}", "Range too big"),
        ("{% include 'x' %}", "no loader"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth"),
    ],
)
def test_every_error_of_a_template_is_the_requests(source, reason):
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        template.render(HELLO)
    assert caught.value.param == "messages"


def test_messages_that_are_nested_too_deep_are_the_requests_error():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match="cannot render"):
        render("{{ messages | tojson }}", [{"role": "user", "content": "", "x": deep}])


def test_a_source_that_is_no_template_is_the_operators_error():
    with pytest.raises(EngineError, match=r"line 2: .*--chat-template"):
        ChatTemplate("\n{% for %}", {})
    with pytest.raises(EngineError, match="No filter named 'nonsense'"):
        ChatTemplate("{{ 1 | nonsense }}", {})


def test_a_template_cannot_write_without_end(monkeypatch):
    source = "{% for i in range(100000) %}{{ messages[0].content }}{% endfor %}"
    monkeypatch.setattr(render_module, "MAX_CHARS", 1000)
    with pytest.raises(InvalidRequestError, match="makes too much of these messages"):
        render(source)


def test_a_template_cannot_run_without_end(monkeypatch):
    monkeypatch.setattr(render_module, "MAX_SECONDS", -1.0)
    with pytest.raises(InvalidRequestError, match="makes too much of these messages"):
        render("{{ messages[0].content }}")


STRINGS = "{% for m in messages %}{{ m.role + m.content | trim }}{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
)
SYSTEM_IS_TEXT = "{{ messages[0].content + '' if messages[0].role == 'system' }}" + BOTH
NO_SYSTEM = "{{ raise_exception('no') if messages[0].role == 'system' }}" + PARTS


@pytest.mark.parametrize(
    "source,forms",
    [
        (STRINGS, ("text", "text", "text", "text")),
        (PARTS, ("parts", "parts", "parts", "text")),
        (BOTH, ("both", "both", "both", "text")),
        (SYSTEM_IS_TEXT, ("text", "both", "both", "text")),
        (NO_SYSTEM, ("text", "parts", "parts", "text")),
        ("{{ messages[0].content }}{{ messages | tojson }}", ("text", "text", "text", "text")),
        ("nothing", ("text", "text", "text", "text")),
    ],
)
def test_the_form_of_content_that_a_template_takes_is_found_by_trying(source, forms):
    template = ChatTemplate(source, {})
    assert tuple(template.form(role) for role in ("system", "user", "assistant", "tool")) == forms
