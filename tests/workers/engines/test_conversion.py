import fcntl
import json
import threading
import time

import pytest
from tiny_gguf import byte_level_model, random_weights

from queueserve.errors import EngineError
from workers.engines import conversion
from workers.engines.conversion import convert_gguf, converted, mend_decoder


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, but no more than that")
    return path


@pytest.fixture
def slow(monkeypatch):
    """Converting, but for the work: each call is noted."""
    calls = []

    def convert(_source, directory):
        calls.append(directory)
        time.sleep(0.2)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(conversion, "_convert", convert)
    return calls


@pytest.mark.timeout(300)  # the first time on a machine
def test_smollm2_becomes_a_model_directory_with_tokenizer_and_template(
    smollm2_gguf, converted_models
):
    pytest.importorskip("transformers")
    directory = converted(smollm2_gguf, converted_models)
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["num_hidden_layers"] == 30
    assert config["dtype"] == "bfloat16"
    assert (directory / "model.safetensors").stat().st_size > 250_000_000
    assert (directory / "tokenizer.json").is_file()
    assert "<|im_start|>" in (directory / "chat_template.jinja").read_text()
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert converted(smollm2_gguf, converted_models) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == before


def test_what_is_converted_is_the_file_which_is_read_once(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    import gguf  # noqa: PLC0415

    path = byte_level_model(tmp_path / "tiny.gguf", [b"he", b"lo"])
    plain, read = gguf.GGUFReader, []

    def reader(*given):
        read.append(given)
        return plain(*given)

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    convert_gguf(path, tmp_path / "made")
    assert len(read) == 1
    assert gguf.GGUFReader is reader  # as it was
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    embedding = model.get_input_embeddings().weight
    expected = random_weights("token_embd.weight", embedding.numel())
    assert embedding.flatten().tolist() == pytest.approx(expected, rel=2**-8)  # in bfloat16
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    tokens = tokenizer.encode("hello", add_special_tokens=False)
    assert tokens == [258, 2 + ord("l"), 259]
    assert tokenizer.decode(tokens) == "hello"


def test_a_process_that_never_converts_is_not_waited_for_for_ever(
    tmp_path, gguf, slow, monkeypatch
):
    monkeypatch.setattr(conversion, "_PATIENCE", 0.3)
    made = converted(gguf, tmp_path / "first").name
    cache = tmp_path / "cache"
    cache.mkdir()
    with (cache / f".{made}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match="another process has not converted"):
            converted(gguf, cache)
    assert converted(gguf, cache).is_dir()
    assert len(slow) == 2


@pytest.mark.parametrize("byte_level", [True, False])
def test_a_byte_level_tokenizer_has_no_other_decoder(byte_level):
    tokenizers = pytest.importorskip("tokenizers")
    decoders, before = tokenizers.decoders, tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = before.ByteLevel() if byte_level else before.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.ByteLevel()])
    mend_decoder(tokenizer)
    assert isinstance(tokenizer.decoder, decoders.ByteLevel) == byte_level


def test_of_several_at_once_one_converts_and_all_get_it(gguf, slow, tmp_path):
    found = []
    workers = [
        threading.Thread(target=lambda: found.append(converted(gguf, tmp_path / "models")))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(slow) == 1
    assert len(set(found)) == 1
    assert (found[0] / "config.json").is_file()


def test_another_version_of_the_file_gets_a_directory_of_its_own(gguf, slow, tmp_path):
    first = converted(gguf, tmp_path / "models")
    gguf.write_bytes(b"GGUF, another")
    second = converted(gguf, tmp_path / "models")
    assert first != second
    assert {path.name[:6] for path in (first, second)} == {"model-"}
    assert len(slow) == 2


def test_what_a_killed_process_left_is_cleared_away(gguf, slow, tmp_path):
    models = tmp_path / "models"
    made = converted(gguf, models)
    left = models / f".{made.name}-x1y2z3"
    left.mkdir()
    made.rename(models / "gone")
    assert converted(gguf, models) == made
    assert not left.exists()


def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(gguf, tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "models" / "broken"
    out.parent.mkdir()
    with pytest.raises(EngineError, match="cannot read"):
        convert_gguf(gguf, out)
    assert list(out.parent.iterdir()) == []


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(EngineError, match="there is no file"):
        converted(tmp_path / "nothing.gguf", tmp_path)


def test_a_directory_that_cannot_be_made_is_named(gguf, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=f"can be kept in {tmp_path / 'file' / 'models'}"):
        converted(gguf, tmp_path / "file" / "models")
