"""Where weights go: what is told to from_pretrained, and what accelerate makes of it."""

from __future__ import annotations

import pytest

from queueserve.errors import EngineError
from workers.adapters import EngineOptions, make_engine
from workers.engines.weights import Weights
from workers.models import resolve

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from workers.engines.transformers_placement import device_of, placement  # noqa: E402

GPU = 24 << 30  # bytes


@pytest.fixture
def a_gpu(monkeypatch):
    """Let torch say that the second of two GPUs has some memory free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((index + 1) * GPU, 4 * GPU))


def placed(device, **options):
    return placement(Weights(device=device, **options), device_of(device))


def test_all_weights_are_on_the_device_unless_they_may_wait_elsewhere(a_gpu):
    assert placed("cpu") == {"device_map": {"": torch.device("cpu")}}
    assert placed(None) == {"device_map": {"": torch.device("cuda")}}
    assert placed("cuda:1") == {"device_map": {"": torch.device("cuda:1")}}


def test_what_is_offloaded_is_bound_by_the_gpu_and_the_memory_of_ours(a_gpu, control_groups):
    control_groups(["0::/"], {"memory.max": 5 << 30})
    asked = placed("cuda", max_gpu_memory="10GiB")
    assert asked["device_map"] == "auto"
    assert asked["max_memory"][0] == "10GiB"
    assert asked["max_memory"]["cpu"] == 5 << 30
    free = placed("cuda:1", cpu_offloading=True)["max_memory"]
    assert set(free) == {1, "cpu"}
    assert free[1] == int(2 * GPU * 0.7)


def test_accelerate_puts_on_the_gpu_what_fits_and_the_rest_into_memory(a_gpu, tiny_llama):
    from accelerate import infer_auto_device_map  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    layer = sum(part.numel() * 4 for part in model.model.layers[0].parameters())
    embedding = model.model.embed_tokens.weight.numel() * 4
    asked = placed("cuda", max_gpu_memory=f"{(embedding + 2 * layer + layer // 2) // 1000}KB")
    where = infer_auto_device_map(
        model, max_memory=asked["max_memory"], no_split_module_classes=["LlamaDecoderLayer"]
    )
    assert where["model.embed_tokens"] == 0
    assert set(where.values()) == {0, "cpu"}
    roomy = placed("cuda", max_gpu_memory="1GiB")["max_memory"]
    assert set(infer_auto_device_map(model, max_memory=roomy).values()) == {0}


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "cuda:1"])
def test_a_device_that_is_not_there_is_named(device, monkeypatch):
    if torch.get_device_module(device.partition(":")[0]).is_available():
        pytest.skip("this machine has one")
    with pytest.raises(EngineError, match=f"--device {device}: torch finds no such device"):
        device_of(device)


def test_an_index_too_high_and_a_kind_that_torch_does_not_know_are_named(a_gpu):
    with pytest.raises(EngineError, match="there are 2 of this kind"):
        device_of("cuda:2")
    with pytest.raises(EngineError, match="knows no device 'npu'"):
        device_of("npu")
    with pytest.raises(EngineError, match="knows no device 'gpu'"):
        device_of("gpu")


def test_several_gpus_share_the_layers_and_nothing_waits_elsewhere(a_gpu):
    shared = placed("cuda", num_gpus=2)
    assert shared["device_map"] == "auto"
    assert shared["max_memory"] == {0: int(GPU * 0.7), 1: int(2 * GPU * 0.7)}
    bound = placed("cuda", num_gpus=2, max_gpu_memory="10GiB")["max_memory"]
    assert bound.pop("cpu") > 0
    assert bound == {0: "10GiB", 1: "10GiB"}


def test_more_gpus_than_there_are_and_another_kind_are_refused(a_gpu):
    with pytest.raises(EngineError, match=r"--num-gpus 3: there are 2 GPUs here$"):
        placed("cuda", num_gpus=3)
    with pytest.raises(EngineError, match="there are 2 GPUs here, and the first is to be cuda:1"):
        placed("cuda:1", num_gpus=2)
    with pytest.raises(
        EngineError, match="sharing a model is for GPUs of CUDA's kind, not for cpu"
    ):
        placed("cpu", num_gpus=2)


def test_an_encoder_is_not_shared(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    source = resolve(str(tmp_path), "transformers")
    with pytest.raises(EngineError, match="an encoder runs on one GPU"):
        make_engine(source, EngineOptions(num_gpus=2))
    make_engine(source, EngineOptions(num_gpus=1))
