"""Every field that the API knows, with a value; docs/api.md tells what each engine says to it."""

from __future__ import annotations

from typing import Any, TypeAlias

Row: TypeAlias = tuple[str, Any]
"""A field's name, with a dot for a member of it, and a value for it."""

TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time in a zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= "yes" | "no"'
HELLO = [{"role": "user", "content": "Say hello."}]

_SAMPLING: list[Row] = [
    ("n", 2),
    ("temperature", 0.5),
    ("top_p", 0.9),
    ("stop", ["\n\n"]),
    ("seed", 7),
    ("presence_penalty", 0.5),
    ("frequency_penalty", 0.5),
    ("logit_bias", {"5": -100}),
    ("stream", True),
    ("user", "ann"),
    ("service_tier", "priority"),
    ("metadata", {"team": "a"}),
    ("top_k", 10),
    ("min_p", 0.05),
    ("repetition_penalty", 1.1),
    ("min_tokens", 1),
    ("stop_token_ids", [3]),
    ("ignore_eos", True),
    ("return_token_ids", True),
    ("structured_outputs", {"choice": ["yes", "no"]}),
    ("guided_json", SCHEMA),
    ("guided_regex", "yes|no"),
    ("guided_choice", ["yes", "no"]),
    ("guided_grammar", GRAMMAR),
    ("use_beam_search", True),
]

ROWS: dict[str, list[Row]] = {
    "/v1/chat/completions": [
        ("max_tokens", 4),
        ("max_completion_tokens", 4),
        *_SAMPLING,
        ("stream_options", {"include_usage": True}),
        ("response_format", {"type": "json_object"}),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        ),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("tools", [TOOL]),
        ("tool_choice", "none"),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "now"}}),
        ("parallel_tool_calls", False),
        ("functions", [TOOL["function"]]),
        ("function_call", {"name": "now"}),
        ("chat_template_kwargs", {"a": 1}),
        ("continue_final_message", True),
        ("add_generation_prompt", True),
        ("echo", True),
        ("modalities", ["text"]),
        ("modalities", ["audio"]),
        ("audio", {"voice": "a"}),
        ("web_search_options", {}),
    ],
    "/v1/completions": [
        ("max_tokens", 4),
        *_SAMPLING,
        ("stream_options", {"include_usage": True}),
        ("response_format", {"type": "json_object"}),
        ("prompt", ["One", "Two"]),
        ("prompt", [1, 2, 3]),
        ("prompt", [[1, 2], [3]]),
        ("logprobs", 2),
        ("echo", True),
        ("best_of", 2),
        ("suffix", " end"),
    ],
    "/v1/responses": [
        ("input", HELLO),
        ("max_output_tokens", 4),
        *(row for row in _SAMPLING if row[0] != "n"),
        ("stream_options", {"include_usage": True}),
        ("instructions", "Be short."),
        ("tools", [{"type": "function", **TOOL["function"]}]),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "name": "now"}),
        ("parallel_tool_calls", False),
        ("text", {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}),
        ("reasoning", {"effort": "low"}),
        ("response_format", {"type": "json_object"}),
        ("chat_template_kwargs", {"a": 1}),
        ("include", ["reasoning.encrypted_content"]),
        ("include", ["message.output_text.logprobs"]),
        ("include", ["web_search_call.results"]),
        ("previous_response_id", "resp_of_nobody"),
        ("store", True),
        ("background", True),
        ("truncation", "auto"),
        ("n", 2),
        ("max_tokens", 4),
        ("top_logprobs", 2),
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("max_tool_calls", 1),
    ],
    "/v1/messages": [
        ("max_tokens", 4),
        ("stream", True),
        ("system", "Be short."),
        ("temperature", 0.5),
        ("top_p", 0.9),
        ("top_k", 10),
        ("stop_sequences", ["\n\n"]),
        ("metadata", {"user_id": "ann"}),
        ("service_tier", "auto"),
        ("tools", [{"name": "now", "input_schema": TOOL["function"]["parameters"]}]),
        ("tool_choice", {"type": "any"}),
        ("tool_choice", {"type": "tool", "name": "now"}),
        ("thinking", {"type": "disabled"}),
        ("output_config", {"format": {"type": "json_schema", "schema": SCHEMA}}),
        ("container", "c"),
        ("mcp_servers", [{"type": "url", "url": "https://mcp.example", "name": "a"}]),
    ],
    "/v1/embeddings": [
        ("input", "a text"),
        ("input", ["one", "two"]),
        ("input", [1, 2, 3]),
        ("input", [[1, 2], [3]]),
        ("encoding_format", "base64"),
        ("dimensions", 16),
        ("truncate_prompt_tokens", 8),
        ("user", "ann"),
        ("service_tier", "flex"),
    ],
    "/v1/rerank": [
        ("query", "cat"),
        ("documents", ["a cat", "a car"]),
        ("top_n", 1),
        ("return_documents", True),
        ("truncate_prompt_tokens", 8),
        ("user", "ann"),
        ("service_tier", "flex"),
    ],
    "/v1/score": [
        ("text_1", "cat"),
        ("text_2", ["a cat", "a car"]),
        ("truncate_prompt_tokens", 8),
        ("user", "ann"),
        ("service_tier", "flex"),
    ],
}
"""By endpoint. A field that stands here several times does so for values that are treated apart."""

BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_completion_tokens": 1},
    "/v1/completions": {"prompt": "Say hello.", "max_tokens": 1},
    "/v1/responses": {"input": "Say hello.", "max_output_tokens": 1, "store": False},
    "/v1/messages": {"messages": HELLO, "max_tokens": 1},
    "/v1/embeddings": {"input": "a text"},
    "/v1/rerank": {"query": "cat", "documents": ["a cat", "a car"]},
    "/v1/score": {"text_1": "cat", "text_2": "a cat"},
}
_CHAT_TOOLS = {"tools": [TOOL]}
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("/v1/chat/completions", "stream_options"): {"stream": True},
    ("/v1/chat/completions", "top_logprobs"): {"logprobs": True},
    ("/v1/chat/completions", "tool_choice"): _CHAT_TOOLS,
    ("/v1/chat/completions", "parallel_tool_calls"): _CHAT_TOOLS,
    ("/v1/chat/completions", "function_call"): {"functions": [TOOL["function"]]},
    ("/v1/chat/completions", "continue_final_message"): {
        "messages": [*HELLO, {"role": "assistant", "content": "Hel"}],
    },
    ("/v1/completions", "stream_options"): {"stream": True},
    ("/v1/responses", "stream_options"): {"stream": True},
    ("/v1/responses", "top_logprobs"): {"include": ["message.output_text.logprobs"]},
    ("/v1/responses", "tool_choice"): {"tools": [{"type": "function", **TOOL["function"]}]},
    ("/v1/responses", "background"): {"store": True},
    ("/v1/messages", "tool_choice"): {
        "tools": [{"name": "now", "input_schema": TOOL["function"]["parameters"]}]
    },
}
"""What a field makes no sense without."""


def request(endpoint: str, field: str, value: Any) -> dict[str, Any]:
    """Return the body that sets one field, and what it needs, and nothing else."""
    body = BASE[endpoint] | NEEDS.get((endpoint, field), {}) | {field: value}
    if endpoint == "/v1/chat/completions" and field == "max_tokens":
        del body["max_completion_tokens"]
    return body
