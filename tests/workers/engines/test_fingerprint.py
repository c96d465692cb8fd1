import os

import pytest

from workers.engines.fingerprint import fingerprint

LARGE = 20 << 20


@pytest.fixture
def files(tmp_path):
    small, large = tmp_path / "config.json", tmp_path / "model.safetensors"
    small.write_text("{}")
    with large.open("wb") as file:
        file.truncate(LARGE)
    return [small, large]


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_the_same_files_give_the_same_in_any_order_and_place(files, tmp_path):
    first = fingerprint(files)
    other = tmp_path / "other"
    other.mkdir()
    for path in files:
        os.link(path, other / path.name)
    assert fingerprint(reversed([other / path.name for path in files])) == first
    assert len(first) == 32
    assert int(first, 16)


def test_traits_names_and_sizes_count(files):
    first = fingerprint(files, "float32")
    assert fingerprint(files, "bfloat16") != first
    assert fingerprint(files[:1], "float32") != first
    with files[1].open("ab") as file:
        file.truncate(LARGE + 1)
    longer = fingerprint(files, "float32")
    assert longer != first
    renamed = files[1].rename(files[1].with_name("other.safetensors"))
    assert fingerprint([files[0], renamed], "float32") != longer


def test_every_byte_of_a_small_file_counts(files):
    first = fingerprint(files)
    flip(files[0], 1)
    assert fingerprint(files) != first


@pytest.mark.parametrize("at", [0, 4095, LARGE - 1])
def test_the_ends_of_a_large_file_count(files, at):
    first = fingerprint(files)
    flip(files[1], at)
    assert fingerprint(files) != first


def test_other_weights_of_the_same_shape_show(files):
    first = fingerprint(files)
    with files[1].open("r+b") as file:  # the header is the same, a tenth of the rest is not
        file.seek(LARGE // 2)
        file.write(b"\1" * (LARGE // 10))
    assert fingerprint(files) != first
