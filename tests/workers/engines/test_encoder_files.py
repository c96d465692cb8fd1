"""What a model is for, and how it embeds, from its files."""

from __future__ import annotations

import json

import pytest

from queueserve.errors import EngineError
from workers.engines.encoder_files import Recipe, recipe_files, recipe_of, use_of, use_of_model


@pytest.fixture
def write(tmp_path):
    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".json").write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.mark.parametrize(
    "architectures, has_modules, use",
    [
        (["BertModel"], False, "embed"),
        (["RobertaModel"], False, "embed"),
        (["XLMRobertaModel"], True, "embed"),
        (["BertForMaskedLM"], True, "embed"),
        (["Qwen3ForCausalLM"], True, "embed"),
        (["BertForSequenceClassification"], False, "score"),
        (["XLMRobertaForSequenceClassification"], True, "score"),
        (["LlamaForCausalLM"], False, "generate"),
        (["GPT2LMHeadModel"], False, "generate"),
        ([], False, "generate"),
        (None, False, "generate"),
    ],
)
def test_the_architecture_and_its_modules_say_what_a_model_is_for(architectures, has_modules, use):
    assert use_of({"architectures": architectures}, has_modules=has_modules) == use


def test_a_directory_is_looked_at_and_what_is_not_there_generates(write):
    directory = write(config={"architectures": ["BertModel"]})
    assert use_of_model(str(directory)) == "embed"
    assert use_of_model(str(directory / "model.gguf")) == "generate"
    (directory / "model.gguf").write_bytes(b"")
    assert use_of_model(str(directory / "model.gguf")) == "generate"


def module(name: str, path: str = "") -> dict[str, str]:
    return {"type": f"sentence_transformers.models.{name}", "path": path}


MODULES = [module("Transformer"), module("Pooling", "1_Pooling"), module("Normalize", "2")]


@pytest.mark.parametrize(
    "config, pooling",
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_the_pooling_is_read(write, config, pooling):
    directory = write(
        modules=MODULES, **{"1_Pooling__config": config}, sentence_bert_config={"max_seq_length": 7}
    )
    assert recipe_of(directory) == Recipe(pooling, 7)
    assert {file.name for file in recipe_files(directory)} == {
        *("modules.json", "config.json", "sentence_bert_config.json")
    }


def test_without_these_files_it_is_the_mean(tmp_path):
    assert recipe_of(tmp_path) == Recipe("mean", None)
    assert recipe_files(tmp_path) == []


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": "attention"},
    ],
)
def test_a_pooling_that_we_do_not_know_is_refused(write, config):
    with pytest.raises(EngineError, match="pooling"):
        recipe_of(write(modules=MODULES, **{"1_Pooling__config": config}))


def test_a_step_that_we_do_not_know_is_refused(write):
    with pytest.raises(EngineError, match="Dense"):
        recipe_of(write(modules=[*MODULES, module("Dense", "3_Dense")]))


def test_a_broken_file_is_named(write, tmp_path):
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(EngineError, match=r"modules\.json"):
        recipe_of(tmp_path)
