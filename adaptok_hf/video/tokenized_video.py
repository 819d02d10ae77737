"""A video as tokens, and the tokens file."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..atomic_files import atomic_file

FORMAT = "adaptok-tokens-1"


@dataclass(eq=False)
class TokenizedVideo:
    """Codes and counts of a video's clips, and what decoding them needs: the result of `tokenize`.

    Args:
        codes: (clips, blocks, latents_per_block) long, at full width.
        token_counts: (clips, blocks) long, how many leading codes of each block count. Blocks after the video's end
            (padding of the last clip) have 0.
        codebook_size: V; a code costs log2(V) bits.
        num_frames: frames of the video.
        fps: average frames per second.
        timestamps: (num_frames,) float64, seconds of each frame.
        source_size: height and width of the video that was tokenized.
        resize_mode: see `AdapTokVideoProcessor`.
        model_hash: fingerprint of the tokenizer's configuration and weights.
        allocation: how the counts were chosen: `strategy`, and for `joint` and `measured` their certificate, `objective`
            (the summed loss, predicted or measured) and `bound` (no allocation of this budget has a lower one).
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

    @property
    def num_tokens(self) -> int:
        return int(self.token_counts.sum())

    @property
    def num_blocks(self) -> int:
        """Number of blocks that hold real frames."""
        return int((self.token_counts > 0).sum())

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
            ValueError: if the path does not end in `.safetensors`.
            FileNotFoundError: if its folder does not exist.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: a tokens file must end in .safetensors")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
        kept = torch.arange(self.codes.shape[2]) < self.token_counts[..., None]
        info = {key: value for key, value in asdict(self).items() if key not in ("codes", "token_counts", "timestamps")}
        info["latents_per_block"] = self.codes.shape[2]
        with atomic_file(path) as partial:
            save_file(
                {
                    "codes": self.codes[kept].to(torch.int32),
                    "token_counts": self.token_counts.to(torch.int32),
                    "timestamps": torch.from_numpy(np.asarray(self.timestamps, dtype=np.float64)),
                },
                partial,
                metadata={"format": FORMAT, "info": json.dumps(info)},
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TokenizedVideo":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError, IsADirectoryError: if there is no such file.
            ValueError: if it is not a tokens file, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected a tokens file (.safetensors)")
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path}: not a tokens file (its format is not {FORMAT!r})")
                info = json.loads(metadata["info"])
                per_block = info.pop("latents_per_block")
                info["source_size"] = tuple(info["source_size"])
                kept_codes = file.get_tensor("codes").long()
                token_counts = file.get_tensor("token_counts").long()
                timestamps = file.get_tensor("timestamps").numpy()
                codes = torch.zeros(*token_counts.shape, per_block, dtype=torch.long)
                tokens = cls(codes=codes, token_counts=token_counts, timestamps=timestamps, **info)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a tokens file, or damaged ({error})") from error
        kept = torch.arange(per_block) < token_counts[..., None]
        if int(kept.sum()) != len(kept_codes) or len(timestamps) != tokens.num_frames:
            raise ValueError(f"{path}: damaged, its counts do not match its codes")
        if ((kept_codes < 0) | (kept_codes >= tokens.codebook_size)).any():
            raise ValueError(f"{path}: damaged, it has codes outside 0..{tokens.codebook_size - 1}")
        codes[kept] = kept_codes
        return tokens
