"""Checkpoints that are cut off are told before a library loads them."""

import json

import pytest

from queueserve.errors import EngineError
from workers.engines.safetensors_files import check_whole

HEADER = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
).encode()
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + bytes(12)


@pytest.mark.parametrize("names", [(), ("model.safetensors",), ("1.safetensors", "2.safetensors")])
def test_whole_files_pass(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(WHOLE)
    check_whole(tmp_path)


@pytest.mark.parametrize(
    "content,says",
    [
        (WHOLE[:-1], f"it has {len(WHOLE) - 1} of its {len(WHOLE)} bytes"),
        (WHOLE[:-12], "of its"),
        (WHOLE[:40], "no header"),
        (b"", "no header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no header"),
        (bytes(8), "no header"),
        (b"\x02" + bytes(7) + b"[]", "no header"),
        (b'\x07\0\0\0\0\0\0\0{"a":1}', "no header"),
    ],
)
def test_a_file_that_is_cut_off_or_none_is_an_error(tmp_path, content, says):
    (tmp_path / "1.safetensors").write_bytes(WHOLE)
    (tmp_path / "2.safetensors").write_bytes(content)
    with pytest.raises(EngineError, match=rf"2\.safetensors is damaged: .*{says}"):
        check_whole(tmp_path)
