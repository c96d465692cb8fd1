"""Which parsers a model needs, read from its chat template or said by an option."""

import pytest

from queueserve.api.parsers import REASONING, TOOLS
from queueserve.errors import EngineError
from workers.templates import known_templates, load_template
from workers.templates.dialects import REASONING_MARKS, TOOL_MARKS, Dialect, choose_dialect


@pytest.mark.parametrize(
    "template,tools,reasoning",
    [
        ("<tool_call>{{ call | tojson }}</tool_call>", "hermes", None),
        ("<tool_call>{{ c }}</tool_call>{{ '<think>' }}", "hermes", "think"),
        ("{{ content.split('</think>')[-1] }}", "json", "think"),
        ("{{ '[TOOL_CALLS]' + call.name + '[ARGS]' }}", "mistral", None),
        ("[THINK]{{ thought }}[/THINK][TOOL_CALLS]", "mistral", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3", None),
        ("Environment: ipython", "llama3", None),
        ("<tool_call><function=f><parameter=x>", "json", None),
        *((load_template(name), "json", None) for name in known_templates()),
    ],
)
def test_a_template_shows_the_dialect(template, tools, reasoning):
    assert choose_dialect(template) == Dialect(tools, reasoning)


def test_options_go_first():
    template = "<tool_call></tool_call><think>"
    assert choose_dialect(template, tools="mistral") == Dialect("mistral", "think")
    assert choose_dialect(template, tools="none", reasoning="none") == Dialect()


def test_a_model_without_a_template_has_nothing_to_parse():
    assert choose_dialect(None, tools="hermes") == Dialect()


@pytest.mark.parametrize("options", [{"tools": "herms"}, {"reasoning": "yes"}])
def test_an_unknown_parser_stops_the_worker_at_its_start(options):
    with pytest.raises(EngineError, match=r"parser \w+: it is auto, none or one of"):
        choose_dialect("x", **options)


def test_both_sides_know_the_same_parsers_and_marks():
    assert TOOL_MARKS.keys() == TOOLS.keys()
    assert {
        name: (tags.opening, tags.closing) for name, tags in REASONING.items()
    } == REASONING_MARKS
