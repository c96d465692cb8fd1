import json
import logging

import pytest

from queueserve.errors import EngineError, InvalidRequestError
from workers.templates import choose_template, known_templates, load_template
from workers.templates.render import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "How are you?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)


@pytest.mark.parametrize(
    "name,plain,with_system",
    [
        (
            "vicuna",
            f"<s>{VICUNA} USER: Hello! ASSISTANT: Hi.</s>USER: How are you? ASSISTANT:",
            "<s>Be brief. USER: Hello! ASSISTANT: Hi.</s>USER: How are you? ASSISTANT:",
        ),
        (
            "koala",
            "<s>BEGINNING OF CONVERSATION: USER: Hello! GPT: Hi.</s>USER: How are you? GPT:",
            "<s>Be brief. USER: Hello! GPT: Hi.</s>USER: How are you? GPT:",
        ),
        (
            "chatml",
            (
                "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
                "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
            ),
            (
                "<|im_start|>system\nBe brief.<|im_end|>\n"
                "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
                "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        (
            "zephyr",
            (
                "<|user|>\nHello!</s>\n<|assistant|>\nHi.</s>\n<|user|>\nHow are you?</s>\n"
                "<|assistant|>\n"
            ),
            (
                "<|system|>\nBe brief.</s>\n"
                "<|user|>\nHello!</s>\n<|assistant|>\nHi.</s>\n<|user|>\nHow are you?</s>\n"
                "<|assistant|>\n"
            ),
        ),
        (
            "alpaca",
            (
                f"<s>{ALPACA}\n\n### Instruction:\nHello!\n\n### Response:Hi.</s>"
                "\n\n### Instruction:\nHow are you?\n\n### Response:"
            ),
            (
                "<s>Be brief.\n\n### Instruction:\nHello!\n\n### Response:Hi.</s>"
                "\n\n### Instruction:\nHow are you?\n\n### Response:"
            ),
        ),
        (
            "llama-2",
            "<s>[INST] Hello! [/INST] Hi. </s><s>[INST] How are you? [/INST]",
            (
                "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello! [/INST] Hi. </s>"
                "<s>[INST] How are you? [/INST]"
            ),
        ),
        (
            "llama-3",
            (
                "<s><|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
            (
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
        (
            "mistral",
            "<s> [INST] Hello! [/INST] Hi.</s> [INST] How are you? [/INST]",
            "<s> [INST] Be brief.\n\nHello! [/INST] Hi.</s> [INST] How are you? [/INST]",
        ),
    ],
)
def test_a_template_writes_exactly_its_prompt(name, plain, with_system):
    template = ChatTemplate(load_template(name), TOKENS)
    assert template.render(TURNS) == plain
    assert template.render([SYSTEM, *TURNS]) == with_system


def test_every_template_is_tested():
    assert known_templates() == (
        *("alpaca", "chatml", "koala", "llama-2", "llama-3", "mistral", "vicuna", "zephyr"),
    )


@pytest.mark.parametrize("name", ["alpaca", "koala", "llama-2", "mistral", "vicuna", "zephyr"])
def test_a_role_that_a_template_does_not_know_is_refused(name):
    template = ChatTemplate(load_template(name), TOKENS)
    with pytest.raises(InvalidRequestError, match='has no role "tool"'):
        template.render([*TURNS, {"role": "tool", "content": "4"}])


def test_white_space_in_a_message_is_kept_by_vicuna():
    template = ChatTemplate(load_template("vicuna"), TOKENS)
    text = template.render([SYSTEM, {"role": "user", "content": " a\n\n b \n"}])
    assert text == "<s>Be brief. USER:  a\n\n b \n ASSISTANT:"


def test_a_file_is_a_template_too_and_anything_else_is_an_error(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0]['content'] }} é", encoding="utf-8")
    assert load_template(str(file)) == "{{ messages[0]['content'] }} é"
    with pytest.raises(EngineError, match=r"neither one of alpaca, chatml, .* nor a readable file"):
        load_template("vicuña")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(EngineError, match="readable"):
        load_template(str(file))


def test_the_option_beats_the_model_and_the_model_beats_its_card():
    path = "lmsys/vicuna-7b-v1.5"
    assert choose_template(option="zephyr", own="own", model_path=path) == load_template("zephyr")
    assert choose_template(option=None, own="own", model_path=path) == "own"
    assert choose_template(option=None, own=None, model_path=path) == load_template("vicuna")


@pytest.mark.parametrize("path", ["lmsys/Vicuna-7B-v1.5", "me/vicuna-7b-v1.5", "vicuna-7b-v1.5"])
def test_a_hub_id_is_matched_exactly(path):
    assert choose_template(option=None, own=None, model_path=path) is None


CARD = "---\nlicense: llama2\n{}\nlanguage:\n- en\n---\n\n# A model\nbase_model: other/model\n"


@pytest.mark.parametrize(
    "config,card,name",
    [
        ({"_name_or_path": "lmsys/vicuna-7b-v1.5"}, None, "vicuna"),
        ({"_name_or_path": "vicuna-7b-v1.5"}, None, "vicuna"),
        ({"_name_or_path": "/models/vicuna-7b-v1.5"}, None, None),
        ({"_name_or_path": 7}, None, None),
        ({}, CARD.format("base_model: lmsys/vicuna-13b-v1.5"), "vicuna"),
        ({}, CARD.format("base_model: 'lmsys/vicuna-13b-v1.5'"), "vicuna"),
        ({}, CARD.format("base_model:\n- unknown/one\n- lmsys/vicuna-13b-v1.5"), "vicuna"),
        ({}, CARD.format("base_model:\n  - lmsys/vicuna-13b-v1.5"), "vicuna"),
        ({}, CARD.format("base_model: unknown/one"), None),
        ({}, CARD.format("chat_template: alpaca"), "alpaca"),
        ({}, CARD.format("chat_template: nonsense"), None),
        ({}, CARD.format("chat_template: alpaca\nbase_model: lmsys/vicuna-7b-v1.5"), "alpaca"),
        ({}, "# A model\n\n---\nchat_template: alpaca\n---\n", None),
        ({"_name_or_path": "lmsys/vicuna-7b-v1.5"}, "\ufffdno card", "vicuna"),
        (None, None, None),
    ],
)
def test_a_local_model_gets_the_template_of_its_card(tmp_path, caplog, config, card, name):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
    with caplog.at_level(logging.INFO):
        source = choose_template(option=None, own=None, model_path=str(tmp_path))
    assert source == (None if name is None else load_template(name))
    assert (name is not None) == (f"using '{name}'" in caplog.text)


def test_a_broken_config_is_no_card(tmp_path):
    (tmp_path / "config.json").write_text("[", encoding="utf-8")
    assert choose_template(option=None, own=None, model_path=str(tmp_path)) is None
