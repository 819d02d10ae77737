import dataclasses
import json
import math
import os
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adaptok_hf.video.tokenized_video import TokenizedVideo


def make_tokens(token_counts: list[list[int]] | None = None, num_frames: int = 14) -> TokenizedVideo:
    """Two clips of 3 blocks of 64 latents; the last block is padding."""
    counts = torch.tensor([[64, 8, 16], [1, 32, 0]] if token_counts is None else token_counts)
    return TokenizedVideo(
        codes=torch.randint(4096, (*counts.shape, 64), generator=torch.Generator().manual_seed(0)),
        token_counts=counts,
        codebook_size=4096,
        num_frames=num_frames,
        fps=12.5,
        timestamps=np.cumsum(np.linspace(0.01, 0.15, num_frames)),
        source_size=(48, 36),
        resize_mode="squash",
        model_hash="0123abc",
        allocation={"strategy": "joint", "objective": 1.25, "bound": 1.125},
    )


def test_round_trip_is_exact(tmp_path):
    tokens = make_tokens()
    tokens.save(tmp_path / "tokens.safetensors")
    loaded = TokenizedVideo.load(tmp_path / "tokens.safetensors")
    kept = torch.arange(64) < tokens.token_counts[..., None]
    assert torch.equal(loaded.codes[kept], tokens.codes[kept])
    assert (loaded.codes[~kept] == 0).all() and not (tokens.codes[~kept] == 0).all()
    assert loaded.codes.dtype == loaded.token_counts.dtype == torch.long
    assert torch.equal(loaded.token_counts, tokens.token_counts)
    assert loaded.timestamps.dtype == np.float64 and np.array_equal(loaded.timestamps, tokens.timestamps)
    others = {field.name for field in fields(TokenizedVideo)} - {"codes", "token_counts", "timestamps"}
    assert "source_size" in others
    for name in others:
        assert getattr(loaded, name) == getattr(tokens, name), name
    assert os.listdir(tmp_path) == ["tokens.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
@pytest.mark.parametrize("name", [b"a:b.safetensors", b"caf\xe9.safetensors", b"-x \n.safetensors"])
def test_any_file_name_works(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    make_tokens().save(path)
    assert TokenizedVideo.load(path).model_hash == make_tokens().model_hash


def test_only_kept_codes_are_stored(tmp_path):
    sizes = []
    for count in (64, 32, 1):
        path = tmp_path / f"{count}.safetensors"
        make_tokens([[count] * 3] * 2).save(path)
        with safe_open(path, "pt") as file:
            assert file.get_slice("codes").get_shape() == [6 * count]
        sizes.append(path.stat().st_size)
    assert sizes[0] - sizes[1] > 4 * 6 * 32 - 64 and sizes[1] - sizes[2] > 4 * 6 * 31 - 64


def test_tokens_and_bits_per_second():
    tokens = make_tokens()
    assert tokens.num_tokens == 64 + 8 + 16 + 1 + 32
    assert tokens.num_blocks == 5
    assert tokens.seconds == pytest.approx(14 / 12.5)
    assert tokens.num_bits == pytest.approx(121 * 12 + 5 * math.log2(65))
    assert tokens.tokens_per_second == pytest.approx(121 / 1.12)
    assert tokens.bits_per_second == pytest.approx((121 * 12 + 5 * math.log2(65)) / 1.12)


def test_overwrites_a_file_only_when_complete(tmp_path, monkeypatch):
    path = tmp_path / "tokens.safetensors"
    make_tokens().save(path)
    before = path.read_bytes()

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make_tokens([[1, 1, 1]]).save(path)
    assert os.listdir(tmp_path) == ["tokens.safetensors"] and path.read_bytes() == before


def test_bad_destinations_are_named(tmp_path):
    with pytest.raises(ValueError, match=".safetensors"):
        make_tokens().save(tmp_path / "tokens.pt")
    with pytest.raises(FileNotFoundError, match="missing"):
        make_tokens().save(tmp_path / "missing" / "tokens.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OSError, match="folder"):
        make_tokens().save(tmp_path / "folder.safetensors")
    assert os.listdir(tmp_path) == ["folder.safetensors"]


def test_files_that_are_not_tokens_are_refused(tmp_path):
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        TokenizedVideo.load(path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        TokenizedVideo.load(tmp_path)
    for content in (b"", b"hello", b"this is not a tokens file at all" * 20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a tokens file"):
            TokenizedVideo.load(path)
    save_file({"codes": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="'adaptok-tokens-1'"):
        TokenizedVideo.load(path)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, fraction):
    path = tmp_path / "tokens.safetensors"
    make_tokens().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(ValueError, match="damaged"):
        TokenizedVideo.load(path)


def rewrite(path, tensors: dict | None = None, info: dict | None = None, without: str = "") -> None:
    """Change parts of a tokens file, which becomes one of version 1: without a checksum."""
    with safe_open(path, "pt") as file:
        metadata = {name: file.metadata()[name] for name in ("format", "info")}
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content |= tensors or {}
    content.pop(without, None)
    details = json.loads(metadata["info"]) | (info or {})
    details.pop(without, None)
    save_file(content, path, metadata=metadata | {"info": json.dumps(details)})


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": {"codes": torch.zeros(120, dtype=torch.int32)}},
        {"tensors": {"codes": torch.full((121,), 4096, dtype=torch.int32)}},
        {"tensors": {"codes": torch.full((121,), -1, dtype=torch.int32)}},
        {"tensors": {"token_counts": torch.tensor([[70, 2, 16], [1, 32, 0]], dtype=torch.int32)}},
        {"tensors": {"timestamps": torch.zeros(3, dtype=torch.float64)}},
        {"tensors": {"codes": torch.zeros(121)}},
        {"tensors": {"codes": torch.tensor(3, dtype=torch.int32)}},
        {"tensors": {"token_counts": torch.tensor([64, 57], dtype=torch.int32)}},
        {"tensors": {"token_counts": torch.tensor([[64, 9, 16], [0, 32, 0]], dtype=torch.int32)}},
        {"tensors": {"token_counts": torch.tensor([[64, 9, 16], [1, 32, -1]], dtype=torch.int32)}},
        {"tensors": {"timestamps": torch.full((14,), torch.nan, dtype=torch.float64)}},
        {"tensors": {"timestamps": torch.arange(14, dtype=torch.float64) * 1e300}},
        {"tensors": {"timestamps": torch.arange(14, 0, -1, dtype=torch.float64)}},
        {"tensors": {"timestamps": torch.arange(14, dtype=torch.float32)}},
        {"tensors": {"surprise": torch.zeros(3)}},
        *({"info": {"fps": fps}} for fps in (0, -1.0, "25", None, True, math.nan, math.inf, 10**400, [25])),
        *({"info": {"latents_per_block": size}} for size in (0, -1, 2**40, 64.0, "64", None, True)),
        *({"info": {"codebook_size": size}} for size in (0, -1, 2**70, 4096.0, "4096", None)),
        *(
            {"info": {"source_size": size}}
            for size in ([0, 0], [48], [48, 36, 3], [100000, 100000], [48.5, 36], "48", ["a", 1])
        ),
        *({"info": {"source_size": size}} for size in ([-48, -36], {"a": 1, "b": 2}, 48)),
        *({"info": {"resize_mode": mode}} for mode in ("stretch", None, 3, ["crop"])),
        *({"info": {"model_hash": value}} for value in (None, 3, ["a"])),
        *({"info": {"allocation": value}} for value in (None, [], "joint", {"strategy": None}, {"bound": [1]})),
        *({"info": {"num_frames": value}} for value in (0, -14, 14.0, "14", None, 2**70)),
        {"info": {"num_frames": 13}},
        {"info": {"latents_per_block": 16}},
        {"info": {"surprise": 1}},
        {"info": {"source_size": None}},
        {"without": "timestamps"},
        {"without": "fps"},
        {"without": "num_frames"},
        {"without": "latents_per_block"},
    ],
)
def test_inconsistent_files_are_refused(tmp_path, changes):
    path = tmp_path / "tokens.safetensors"
    make_tokens().save(path)
    rewrite(path)
    TokenizedVideo.load(path)
    rewrite(path, **changes)
    with pytest.raises(ValueError, match="damaged"):
        TokenizedVideo.load(path)


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "tokens.safetensors"
    make_tokens().save(path)
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 7):  # every byte, and every bit of some
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        if json_is_equal(content, damaged):
            continue
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="tokens.safetensors"):
            TokenizedVideo.load(path)


def json_is_equal(content: bytes, damaged: bytes) -> bool:
    """Return whether only white space around the header changed, which means nothing."""
    size = int.from_bytes(content[:8], "little")
    try:
        same = json.loads(content[8 : 8 + size]) == json.loads(damaged[8 : 8 + size])
    except ValueError:
        return False
    return same and content[:8] == damaged[:8] and content[8 + size :] == damaged[8 + size :]


@pytest.mark.parametrize(
    "change", [{"version": "3"}, {"checksum": "0" * 64}, {"version": None}, {"checksum": None}, {"x": ""}]
)
def test_versions_and_checksums(tmp_path, change):
    path = tmp_path / "tokens.safetensors"
    make_tokens().save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata["version"] == "2"
    metadata = {name: value for name, value in (metadata | change).items() if value is not None}
    save_file(content, path, metadata=metadata)
    with pytest.raises(ValueError, match="tokens.safetensors.*damaged"):
        TokenizedVideo.load(path)


def test_other_types_than_float32_are_recorded_in_version_3(tmp_path):
    path = tmp_path / "tokens.safetensors"
    for dtype, version in {"float32": "2", "bfloat16": "3"}.items():
        dataclasses.replace(make_tokens(), dtype=dtype).save(path)
        with safe_open(path, "pt") as file:
            assert file.metadata()["version"] == version
        assert TokenizedVideo.load(path).dtype == dtype


@pytest.mark.parametrize(
    "change", [{"fps": math.nan}, {"num_frames": 3}, {"dtype": "float99"}, {"allocation": {"bound": math.inf}}]
)
def test_what_could_not_be_read_is_not_written(tmp_path, change):
    with pytest.raises(ValueError):
        dataclasses.replace(make_tokens(), **change).save(tmp_path / "tokens.safetensors")
    assert os.listdir(tmp_path) == []
