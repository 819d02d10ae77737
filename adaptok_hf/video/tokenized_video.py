"""A video as tokens, and the tokens file."""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..atomic_files import atomic_file
from .tiles import TileGrid

FORMAT = "adaptok-tokens-1"
# Files of version 1 have neither a version nor a checksum; readers of version 1 can read version 2. Files of tiles, of
# clips that overlap and of other types than float32 are of version 3; others stay at version 2, so that earlier readers
# take them.
VERSIONS = ("2", "3")
_OF_VERSION_3 = {"tiles": None, "overlap_blocks": 0, "dtype": "float32"}  # each with the value that is not written
_METADATA = ({"format", "info"}, {"format", "version", "info", "checksum"})
_TENSORS = {"codes": ("I32", 1), "token_counts": ("I32", 2), "timestamps": ("F64", 1)}  # type and dimensions

# Far above every model and video there is: a damaged number must not ask for all memory.
_MOST_LATENTS_PER_BLOCK = 16384
_MOST_PIXELS = 2**25  # of a frame, 8K
_MOST_HEADER = 2**24  # bytes


@dataclass(eq=False)
class TokenizedVideo:
    """Codes and counts of a video's clips, and what decoding them needs: the result of `tokenize`.

    Args:
        codes: (clips, blocks, latents_per_block) long, at full width. With tiles, all of the first clip come first.
        token_counts: (clips, blocks) long, how many leading codes of each block count. Blocks after the video's end
            (padding of the last clip) have 0.
        codebook_size: V; a code costs log2(V) bits.
        num_frames: frames of the video.
        fps: average frames per second.
        timestamps: (num_frames,) float64, seconds of each frame.
        source_size: height and width of the video that was tokenized.
        resize_mode: see `AdapTokVideoProcessor`.
        model_hash: fingerprint of the tokenizer's configuration and weights.
        allocation: how the counts were chosen: `strategy`; with a budget, the tokens per block that were asked for
            (`budget`) and spent (`reached`) by all that share it; for `joint` and `measured` their certificate, `objective`
            (the summed loss, predicted or measured) and `bound` (no allocation of this size has a lower one).
        tiles: their places, for `resize_mode="tile"`.
        overlap_blocks: blocks that each clip shares with the one before.
        dtype: the type of the tokenizer's weights when it encoded, such as `"bfloat16"`. Another type chooses another code
            where two are almost equally near; any can decode.
    """

    codes: torch.Tensor
    token_counts: torch.Tensor
    codebook_size: int
    num_frames: int
    fps: float
    timestamps: np.ndarray
    source_size: tuple[int, int]
    resize_mode: str
    model_hash: str
    allocation: dict[str, str | float] = field(default_factory=dict)
    tiles: TileGrid | None = None
    overlap_blocks: int = 0
    dtype: str = "float32"

    @property
    def num_tokens(self) -> int:
        return int(self.token_counts.sum())

    @property
    def num_blocks(self) -> int:
        """Number of blocks that hold real frames; those of each tile count."""
        return int((self.token_counts > 0).sum())

    def counts_over_time(self) -> torch.Tensor:
        """Return the tokens for each block of time: of clips that overlap in sum, of tiles on average."""
        counts = self.token_counts.unflatten(0, (-1, len(self.tiles) if self.tiles else 1)).float().mean(1)
        step = counts.shape[1] - self.overlap_blocks
        total = torch.zeros((len(counts) - 1) * step + counts.shape[1])
        for clip, row in enumerate(counts):
            total[clip * step : clip * step + len(row)] += row
        return total

    @property
    def seconds(self) -> float:
        """Duration: frames over fps."""
        return self.num_frames / self.fps

    @property
    def num_bits(self) -> float:
        """log2(codebook_size) for each kept code, and log2(latents_per_block + 1) for each block's count."""
        counts_bits = self.num_blocks * math.log2(self.codes.shape[2] + 1)
        return self.num_tokens * math.log2(self.codebook_size) + counts_bits

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def bits_per_second(self) -> float:
        return self.num_bits / self.seconds

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file that holds the kept codes only.

        Raises:
            ValueError: if the path does not end in `.safetensors`, or a field is out of range.
            FileNotFoundError: if its folder does not exist.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: a tokens file must end in .safetensors")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
        try:
            self.check()
        except ValueError as error:
            raise ValueError(f"{path} was not written: {error}") from error
        kept = torch.arange(self.codes.shape[2]) < self.token_counts[..., None]
        info = {key: value for key, value in asdict(self).items() if key not in _TENSORS}
        info["latents_per_block"] = self.codes.shape[2]
        info = {name: value for name, value in info.items() if name not in _OF_VERSION_3 or value != _OF_VERSION_3[name]}
        tensors = {
            "codes": self.codes[kept].to(torch.int32),
            "token_counts": self.token_counts.to(torch.int32).contiguous(),
            "timestamps": torch.from_numpy(np.array(self.timestamps, dtype=np.float64)),
        }
        metadata = {
            "format": FORMAT,
            "version": VERSIONS[not _OF_VERSION_3.keys().isdisjoint(info)],
            "info": json.dumps(info, allow_nan=False),
        }
        metadata["checksum"] = _checksum(tensors, metadata["info"])
        with atomic_file(path) as partial:
            save_file(tensors, partial, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TokenizedVideo":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError, IsADirectoryError: if there is no such file.
            ValueError: if it is not a tokens file, or damaged.
        """
        from safetensors import SafetensorError

        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected a tokens file (.safetensors)")
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        if not path.is_file():
            raise ValueError(f"{path}: not a tokens file but a device or pipe")
        try:
            with path.open("rb") as file:
                return cls._read(file)
        # what damaged JSON and headers raise, next to our own ValueError
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: not a tokens file, or damaged ({error})") from error

    @classmethod
    def _read(cls, file) -> "TokenizedVideo":
        """Read an open safetensors file; sizes are checked before memory is taken.

        It is read here, not by safetensors' `safe_open`, which takes only names in UTF-8.
        """
        from safetensors.torch import load

        start = file.read(8)
        start += file.read(min(int.from_bytes(start, "little"), _MOST_HEADER))
        header = json.loads(start[8:])
        metadata = header.pop("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        version = metadata.get("version", VERSIONS[0])
        if set(metadata) not in _METADATA or version not in VERSIONS:
            raise ValueError(f"version {version!r} with {sorted(metadata)}, expected {' or '.join(VERSIONS)}")
        if set(header) != set(_TENSORS):
            raise ValueError(f"it holds {sorted(header)}, expected {sorted(_TENSORS)}")
        for name, expected in _TENSORS.items():
            dtype, shape = header[name]["dtype"], header[name]["shape"]
            if (dtype, len(shape)) != expected or 0 in shape:
                raise ValueError(f"{name} is {dtype} of shape {shape}")
        tensors = load(start + file.read())
        if "checksum" in metadata and metadata["checksum"] != _checksum(tensors, metadata["info"]):
            raise ValueError(f"its content does not match its checksum {metadata['checksum']!r}")
        info = json.loads(metadata["info"], parse_constant=_refuse_constant)
        if not isinstance(info, dict):
            raise ValueError(f"info={info!r}, expected entries by name")
        per_block = info.pop("latents_per_block")
        _check_whole("latents_per_block", per_block, _MOST_LATENTS_PER_BLOCK)
        info["source_size"] = tuple(info["source_size"])
        if (version == VERSIONS[0]) != _OF_VERSION_3.keys().isdisjoint(info):
            raise ValueError(
                f"version {version!r} with info of {sorted(info)}: {', '.join(_OF_VERSION_3)} belong to version '3'"
            )
        if "tiles" in info:
            info["tiles"] = TileGrid(**{name: _as_tuple(value) for name, value in info["tiles"].items()})
        counts = tensors["token_counts"].long()
        if not 0 <= int(counts.min()) <= int(counts.max()) <= per_block:
            raise ValueError(f"token_counts from {int(counts.min())} to {int(counts.max())}, expected 0..{per_block}")
        if int(counts.sum()) != len(tensors["codes"]):
            raise ValueError(f"its counts add up to {int(counts.sum())}, but it has {len(tensors['codes'])} codes")
        codes = torch.zeros(*counts.shape, per_block, dtype=torch.long)
        codes[torch.arange(per_block) < counts[..., None]] = tensors["codes"].long()
        tokens = cls(codes=codes, token_counts=counts, timestamps=tensors["timestamps"].numpy(), **info)
        tokens.check()
        return tokens

    def check(self) -> None:
        """Raise `ValueError` for a field of a wrong type, range or size, by name."""
        _check_whole("num_frames", self.num_frames)
        _check_whole("codebook_size", self.codebook_size, 2**31)
        if type(self.fps) not in (int, float) or not 0 < self.fps <= 1e9:
            raise ValueError(f"fps={self.fps!r}, expected a number above 0, at most 1e9")
        times = np.asarray(self.timestamps)
        if times.shape != (self.num_frames,) or times.dtype.kind not in "fiu":
            raise ValueError(f"{times.dtype} timestamps of shape {times.shape} for num_frames={self.num_frames}")
        if not (np.abs(times) <= 1e10).all() or (np.diff(times) <= 0).any():
            raise ValueError("timestamps that are not rising, or not finite and within 1e10 seconds")
        _check_whole("latents_per_block", self.codes.shape[-1], _MOST_LATENTS_PER_BLOCK)
        if self.codes.ndim != 3 or self.token_counts.shape != self.codes.shape[:2] or 0 in self.codes.shape:
            raise ValueError(f"token_counts of shape {tuple(self.token_counts.shape)}, codes {tuple(self.codes.shape)}")
        low, high = int(self.token_counts.min()), int(self.token_counts.max())
        if low < 0 or high > self.codes.shape[2] or int(self.token_counts[:, 0].min()) < 1:
            raise ValueError(
                f"token_counts from {low} to {high}, expected 0..{self.codes.shape[2]}, at least 1 in first blocks"
            )
        low, high = int(self.codes.min()), int(self.codes.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"codes from {low} to {high}, expected 0..{self.codebook_size - 1}")
        if not isinstance(self.source_size, tuple) or len(self.source_size) != 2:
            raise ValueError(f"source_size={self.source_size!r}, expected height and width")
        for side in self.source_size:
            _check_whole("source_size", side)
        if self.source_size[0] * self.source_size[1] > _MOST_PIXELS:
            raise ValueError(f"source_size={self.source_size}, expected at most {_MOST_PIXELS} pixels")
        if self.resize_mode not in (("crop", "squash") if self.tiles is None else ("tile",)):
            raise ValueError(
                f"resize_mode={self.resize_mode!r} with tiles={self.tiles}, expected 'crop', 'squash', or 'tile' with tiles"
            )
        most = 0 if self.tiles else self.codes.shape[1] // 2
        if type(self.overlap_blocks) is not int or not 0 <= self.overlap_blocks <= most:
            raise ValueError(f"overlap_blocks={self.overlap_blocks!r}, expected a whole number from 0 to {most}")
        if self.tiles is not None:
            _check_whole("tile size", self.tiles.size)
            self.tiles.check(*self.source_size)
            if len(self.codes) % len(self.tiles):
                raise ValueError(f"{len(self.codes)} clips of {len(self.tiles)} tiles each")
        if not isinstance(getattr(torch, str(self.dtype), None), torch.dtype):
            raise ValueError(f"dtype={self.dtype!r}, expected the name of a type such as 'float32'")
        if not isinstance(self.model_hash, str):
            raise ValueError(f"model_hash={self.model_hash!r}, expected text")
        if not isinstance(self.allocation, dict) or not all(
            isinstance(v, str | int | float) for v in self.allocation.values()
        ):
            raise ValueError(f"allocation={self.allocation!r}, expected names with texts and numbers")


def _check_whole(name: str, value: object, most: int = 2**40) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name}={value!r}, expected a whole number from 1 to {most}")


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _checksum(tensors: dict[str, torch.Tensor], info: str) -> str:
    """Return the SHA-256 of everything that a tokens file holds."""
    digest = hashlib.sha256(info.encode())
    for name in _TENSORS:
        digest.update(str(tuple(tensors[name].shape)).encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
