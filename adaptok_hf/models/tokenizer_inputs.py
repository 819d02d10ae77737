"""Checks of what the tokenizers are given: pixels and codes."""

import torch

from .block_cache import BlockCache


class TokenizerInputs:
    """Mixin of a tokenizer: raise `ValueError` for inputs that do not fit its configuration."""

    def check_video(self, video: torch.Tensor, attention_type: str, past_key_values: BlockCache | None = None) -> None:
        """Raise `ValueError` unless `video` is blocks of clips, which can follow those in a cache."""
        config = self.config
        size = (config.num_channels, config.image_size, config.image_size)
        if video.ndim != 5 or tuple(video.shape[2:]) != size:
            raise ValueError(f"pixel_values_videos has shape {tuple(video.shape)}, expected (batch, frames, *{size})")
        frames = video.shape[1]
        if frames == 0 or frames % config.tubelet_size or frames > config.num_frames:
            raise ValueError(
                f"a clip has {frames} frames, expected a multiple of {config.tubelet_size} up to {config.num_frames}"
            )
        if past_key_values is not None:
            past_key_values.check_next(attention_type, len(video), frames // config.tubelet_size, config.num_blocks)

    def to_pixels(self, video: torch.Tensor, check: bool = True) -> torch.Tensor:
        """Return floats in [0, 1] of the model's type; `ValueError` for values of another range."""
        if video.dtype == torch.bool or video.is_complex():
            raise ValueError(f"pixel_values_videos must be floats in [0, 1] or integers 0..255, got {video.dtype}")
        largest = 1 if video.is_floating_point() else 255
        if check and video.numel() and not torch.compiler.is_compiling():
            low, high = video.detach().aminmax()
            # a hair outside is rounding (half precision, resizing)
            if not (low >= -1e-3 and high <= largest + 1e-3):
                raise ValueError(
                    f"pixel_values_videos has values from {float(low):g} to {float(high):g}; expected floats in [0, 1] "
                    "without NaN, or integers 0..255"
                )
        return (video if largest == 1 else video / 255).to(self.dtype)

    def check_tokens(
        self,
        codes: torch.Tensor | None,
        quantized: torch.Tensor | None,
        attention_type: str,
        past_key_values: BlockCache | None = None,
    ) -> tuple[int, int]:
        """Return the numbers of clips and blocks; `ValueError` for tokens that `decode` does not take."""
        config = self.config
        if (codes is None) == (quantized is None):
            raise ValueError("decode takes exactly one of codes and quantized")
        given = codes if quantized is None else quantized
        if (
            given.ndim != (3 if quantized is None else 4)
            or not 1 <= given.shape[1] <= config.num_blocks
            or given.shape[2] != config.latents_per_block
        ):
            raise ValueError(
                f"{'codes' if quantized is None else 'quantized'} has shape {tuple(given.shape)}, expected (batch, "
                f"1..{config.num_blocks} blocks, {config.latents_per_block} latents{', width' * (quantized is not None)})"
            )
        if past_key_values is not None:
            past_key_values.check_next(attention_type, *given.shape[:2], config.num_blocks)
        return given.shape[:2]

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the vectors of codes as the decoder reads them; `ValueError` for codes that do not exist."""
        if codes.is_floating_point():
            raise ValueError(f"codes must be integers, got {codes.dtype}")
        codes = codes.long()  # data sets store them as uint16, with which torch cannot compute
        if not torch.compiler.is_compiling() and codes.numel():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= self.config.codebook_size:
                raise ValueError(f"codes must lie in 0..{self.config.codebook_size - 1}, got {low}..{high}")
        return self.quantizer.lookup(codes)
