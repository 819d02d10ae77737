"""The AdapTok tokenizer: video <-> codes, a temporal block at a time, from any prefix of each block's tokens."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .attention_masks import (
    block_rule,
    block_segments,
    build_attention_mask,
    check_token_counts,
    kept_rule,
    kept_tokens,
    takes_segments,
)
from .block_cache import BlockCache, run_block
from .configuration_adaptok import AdapTokConfig
from .layers import (
    AdapTokLayer,
    LearnedPositions,
    PatchEmbedding,
    PatchHead,
    SinCosPositions,
    init_layer_weights,
    latent_positions,
    patch_positions,
    run_segments,
)
from .quantization import VectorQuantizer


@dataclass
class AdapTokEncoderOutput(ModelOutput):
    """
    Args:
        codes: (batch, blocks, latents_per_block) long, codebook indices at full width.
        latents: (batch, blocks, latents_per_block, hidden_size), the encoder's output before quantisation.
        quantized: (batch, blocks, latents_per_block, hidden_size), the codes' vectors as decoder and scorer read them.
    """

    codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None


@dataclass
class AdapTokDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values_videos: (batch, blocks * tubelet_size, channels, height, width). Trained to lie in [0, 1], not clamped.
    """

    pixel_values_videos: torch.FloatTensor | None = None


@dataclass
class AdapTokOutput(ModelOutput):
    """
    Args:
        pixel_values_videos: (batch, frames, channels, height, width), the reconstruction, not clamped.
        codes: (batch, blocks, latents_per_block) long.
        commitment_loss: scalar, mean squared distance of kept latents to their codebook vectors (gradient to the latents).
        codebook_loss: scalar, the same distance (gradient to the codebook).
        latents: (batch, blocks, latents_per_block, hidden_size), before quantisation.
        quantized: (batch, blocks, latents_per_block, hidden_size), after quantisation.
        code_vectors: (batch, blocks, latents_per_block, codebook_dim), unit codebook vectors, straight-through gradient.
    """

    pixel_values_videos: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    code_vectors: torch.FloatTensor | None = None


class TypeEmbedding(nn.Module):
    """One learned vector for all tokens of a kind."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, width))

    def forward(self) -> torch.Tensor:
        return self.weight


def positions(config, learned: bool, length: int, kind: str) -> nn.Module:
    """A position table for `kind` "patch" or "latent" tokens."""
    width = config.hidden_size
    if learned:
        return LearnedPositions(length, width)
    if kind == "patch":
        return SinCosPositions(lambda: patch_positions(config.num_blocks, config.grid_size, width))
    return SinCosPositions(lambda: latent_positions(length, width, config.latent_position_base))


def block_after_block(latents: torch.Tensor, patches: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Latents and patches (batch, blocks * own, width) -> (batch, all, width), each block's latents before its patches."""
    return torch.cat([tokens.unflatten(1, (num_blocks, -1)) for tokens in (latents, patches)], dim=2).flatten(1, 2)


class AdapTokEncoder(nn.Module):
    """Patches and latent queries -> latents."""

    def __init__(self, config: AdapTokConfig):
        super().__init__()
        self.config = config
        num_patches = config.num_blocks * config.patches_per_block
        self.patch_embedding = PatchEmbedding(config)
        self.patch_positions = positions(config, config.learned_encoder_patch_positions, num_patches, "patch")
        self.latent_queries = positions(config, config.learned_encoder_latent_queries, config.num_latent_tokens, "latent")
        self.patch_type = TypeEmbedding(config.hidden_size) if config.encoder_patch_type_embedding else None
        self.latent_type = TypeEmbedding(config.hidden_size) if config.encoder_latent_type_embedding else None
        self.layers = nn.ModuleList(AdapTokLayer(config, i) for i in range(config.num_encoder_layers))

    def forward(self, pixel_values_videos: torch.Tensor, past_key_values: BlockCache | None = None) -> torch.Tensor:
        """(batch, frames, channels, height, width) -> (batch, blocks * latents_per_block, hidden_size).

        With a cache, the frames are those of the blocks that follow the ones in it.
        """
        config = self.config
        num_blocks = pixel_values_videos.shape[1] // config.tubelet_size
        num_patches, num_latents = num_blocks * config.patches_per_block, num_blocks * config.latents_per_block
        first = past_key_values.num_blocks if past_key_values is not None else 0
        first_patch, first_latent = first * config.patches_per_block, first * config.latents_per_block

        patches = self.patch_embedding(pixel_values_videos)
        patches = patches + self.patch_positions()[:, first_patch : first_patch + num_patches]
        if self.patch_type is not None:
            patches = patches + self.patch_type()
        latents = self.latent_queries()[:, first_latent : first_latent + num_latents]
        if self.latent_type is not None:
            latents = latents + self.latent_type()
        latents = latents.expand(patches.shape[0], -1, -1)
        # fixed position tables stay float32 when weights are loaded in half precision
        dtype = self.patch_embedding.projection.weight.dtype
        latents, patches, attention_type = latents.to(dtype), patches.to(dtype), config.encoder_attention_type
        if past_key_values is not None:
            pairs = zip(latents.chunk(num_blocks, 1), patches.chunk(num_blocks, 1), strict=True)
            return torch.cat([run_block(config, attention_type, self.layers, *p, past_key_values) for p in pairs], dim=1)
        if takes_segments(config, attention_type):
            hidden_states = block_after_block(latents, patches, num_blocks)
            counts = [config.latents_per_block] * num_blocks
            segments, read, _ = block_segments(attention_type, counts, config.patches_per_block)
            return run_segments(self.layers, hidden_states, segments, read)
        hidden_states = torch.cat([patches, latents], dim=1)

        blocks = torch.arange(num_blocks, device=hidden_states.device)
        block = torch.cat(
            [
                blocks.repeat_interleave(config.patches_per_block),
                blocks.repeat_interleave(config.latents_per_block),
            ]
        )
        is_patch = torch.arange(num_patches + num_latents, device=hidden_states.device) < num_patches
        rule = block_rule(attention_type, block[None], is_patch)
        mask = build_attention_mask(config, hidden_states, rule, per_sample=False)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return hidden_states[:, num_patches:]


class AdapTokDecoder(nn.Module):
    """Kept latents and patch queries -> video."""

    def __init__(self, config: AdapTokConfig):
        super().__init__()
        self.config = config
        num_patches = config.num_blocks * config.patches_per_block
        self.latent_positions = positions(
            config, config.learned_decoder_latent_positions, config.num_latent_tokens, "latent"
        )
        self.patch_queries = positions(config, config.learned_decoder_patch_queries, num_patches, "patch")
        self.latent_type = TypeEmbedding(config.hidden_size) if config.decoder_latent_type_embedding else None
        self.patch_type = TypeEmbedding(config.hidden_size) if config.decoder_patch_type_embedding else None
        self.layers = nn.ModuleList(AdapTokLayer(config, i) for i in range(config.num_decoder_layers))
        self.head = PatchHead(config)

    def forward(
        self,
        quantized: torch.Tensor,
        token_counts: torch.Tensor | None = None,
        past_key_values: BlockCache | None = None,
    ) -> torch.Tensor:
        """
        Args:
            quantized: (batch, blocks, latents_per_block, hidden_size).
            token_counts: (batch, blocks) long, the leading latents of each block that are kept; `None` keeps all.
            past_key_values: with a cache, the blocks follow the ones in it.
        """
        config = self.config
        batch, num_blocks, per_block, width = quantized.shape
        if past_key_values is not None:
            counts = [None] * num_blocks if token_counts is None else token_counts.unbind(1)
            pairs = zip(quantized.unbind(1), counts, strict=True)
            return torch.cat([self._next_block(*pair, past_key_values) for pair in pairs], dim=1)
        device, dtype = quantized.device, quantized.dtype
        latents = quantized + self.latent_positions()[:, : num_blocks * per_block].unflatten(1, (num_blocks, per_block))
        if self.latent_type is not None:
            latents = latents + self.latent_type()
        queries = self.patch_queries()[:, : num_blocks * config.patches_per_block]
        if self.patch_type is not None:
            queries = queries + self.patch_type()
        latents, queries = latents.to(dtype), queries.to(dtype).expand(batch, -1, -1)

        # counts that are read into Python would be compiled anew for all their values
        in_python = token_counts is None or not torch.compiler.is_compiling()
        if in_python and takes_segments(config, config.decoder_attention_type):
            counts = [[per_block] * num_blocks] if token_counts is None else token_counts.tolist()
            alike = all(row == counts[0] for row in counts)
            # clips of different counts: many small products, which pay where starting one costs little
            if alike or device.type == "cpu":
                return self.head(self._without_mask(latents, queries, counts[:1] if alike else counts))

        blocks = torch.arange(num_blocks, device=device)
        latents, latent_block, kept = latents.flatten(1, 2), blocks.repeat_interleave(per_block)[None], None
        if token_counts is not None:
            kept = kept_tokens(token_counts, per_block).flatten(1)
            # Dropped latents leave the sequence; clips that keep fewer than the others are padded at the end.
            index = torch.argsort(~kept, dim=1, stable=True)[:, : int(kept.sum(1).max())]
            kept = kept.gather(1, index)
            latents = latents.gather(1, index[..., None].expand(-1, -1, width)) * kept[..., None]
            latent_block = latent_block[0, index]
        num_latents = latents.shape[1]
        hidden_states = torch.cat([latents, queries], dim=1)

        patch_block = blocks.repeat_interleave(config.patches_per_block)[None].expand(latent_block.shape[0], -1)
        block = torch.cat([latent_block, patch_block], dim=1)
        is_patch = torch.arange(hidden_states.shape[1], device=device) >= num_latents
        rule = block_rule(config.decoder_attention_type, block, is_patch)
        if kept is not None:
            rule = kept_rule(rule, torch.cat([kept, torch.ones_like(patch_block, dtype=torch.bool)], dim=1))
        mask = build_attention_mask(config, hidden_states, rule, per_sample=kept is not None)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return self.head(hidden_states[:, num_latents:])

    def _without_mask(self, latents: torch.Tensor, queries: torch.Tensor, counts: list[list[int]]) -> torch.Tensor:
        """(batch, blocks, latents_per_block, width), (batch, all patches, width) -> (batch, all patches, width).

        Args:
            counts: the counts of each clip, or a single row that holds for all. Clips with counts of their own lie one
                behind the other in one sequence.
        """
        attention_type, num_patches = self.config.decoder_attention_type, self.config.patches_per_block
        queries = queries.unflatten(1, (-1, num_patches))
        clips = latents.split(len(latents) // len(counts)), queries.split(len(latents) // len(counts))
        tokens, segments, read, length = [], [], [], 0
        for row, own_latents, own_queries in zip(counts, *clips, strict=True):
            for block, count in enumerate(row):
                tokens += [own_latents[:, block, :count], own_queries[:, block]]
            own_segments, _, own_read = block_segments(attention_type, row, num_patches, start=length)
            segments, read, length = segments + own_segments, read + own_read, length + sum(row) + len(row) * num_patches
        patches = run_segments(self.layers, torch.cat(tokens, dim=1), segments, read)
        return patches.reshape(len(latents), -1, patches.shape[-1])

    def _next_block(self, latents: torch.Tensor, token_counts: torch.Tensor | None, cache: BlockCache) -> torch.Tensor:
        """(batch, latents_per_block, hidden_size), (batch,) -> (batch, tubelet_size, channels, height, width)."""
        config, batch, dtype = self.config, latents.shape[0], latents.dtype
        first_latent = cache.num_blocks * config.latents_per_block
        first_patch = cache.num_blocks * config.patches_per_block
        kept = None
        if token_counts is not None:
            fewest, most = int(token_counts.min()), int(token_counts.max())
            latents = latents[:, :most]
            if fewest < most:
                kept = kept_tokens(token_counts, most)
                latents = latents * kept[..., None]
        latents = latents + self.latent_positions()[:, first_latent : first_latent + latents.shape[1]]
        if self.latent_type is not None:
            latents = latents + self.latent_type()
        queries = self.patch_queries()[:, first_patch : first_patch + config.patches_per_block]
        if self.patch_type is not None:
            queries = queries + self.patch_type()
        queries = queries.expand(batch, -1, -1).to(dtype)
        tokens = latents.to(dtype), queries
        attention_type = config.decoder_attention_type
        patches = run_block(config, attention_type, self.layers, *tokens, cache, kept, read_patches=True)
        return self.head(patches)


class AdapTokPreTrainedModel(PreTrainedModel):
    config_class = AdapTokConfig
    base_model_prefix = ""
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    supports_gradient_checkpointing = True
    _no_split_modules = ["AdapTokLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # has no way to express the block masks
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        init_layer_weights(module, self.config.initializer_range)
        if isinstance(module, TypeEmbedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, VectorQuantizer):  # rows of unit length on average: the codebook is normalised
            init.normal_(module.codebook.weight, std=self.config.codebook_dim**-0.5)


class AdapTokModel(AdapTokPreTrainedModel):
    """Adaptive, temporally causal video tokenizer (arXiv 2505.17011).

    The first `k` blocks of a clip are encoded and decoded alike whether or not later blocks are given, so every method
    also takes clips of fewer than `config.num_blocks` blocks. `encode` and `decode` also take a clip a few blocks at a
    time, with a [`BlockCache`] each that holds what later blocks see of earlier ones; the result is that of the whole
    clip, to float round-off.
    """

    def __init__(self, config: AdapTokConfig):
        super().__init__(config)
        self.encoder = AdapTokEncoder(config)
        self.quantizer = VectorQuantizer(config)
        self.decoder = AdapTokDecoder(config)
        self.post_init()

    def _check_video(self, video: torch.Tensor, past_key_values: BlockCache | None = None) -> None:
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
            past_key_values.check_next(
                config.encoder_attention_type, len(video), frames // config.tubelet_size, config.num_blocks
            )

    def _check_token_counts(
        self, token_counts: torch.Tensor | None, batch: int, num_blocks: int, follows: bool = False
    ) -> None:
        """`follows`: there are blocks before these, so the first of them may be empty."""
        if token_counts is None:
            return
        if not self.config.adaptive:
            raise ValueError("this tokenizer is not adaptive (CausalTok): it takes no token_counts")
        check_token_counts(token_counts, batch, num_blocks, self.config.latents_per_block)
        if not follows and not torch.compiler.is_compiling() and int(token_counts[:, 0].min()) < 1:
            raise ValueError("the first block of a clip must keep at least 1 token, got 0")

    def _blocks(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, blocks * latents_per_block, ...) -> (batch, blocks, latents_per_block, ...)."""
        return tokens.unflatten(1, (-1, self.config.latents_per_block))

    def encode(
        self,
        pixel_values_videos: torch.Tensor,
        sample_codes: bool = False,
        past_key_values: BlockCache | None = None,
    ) -> AdapTokEncoderOutput:
        """Video -> codes.

        Args:
            pixel_values_videos: (batch, frames, channels, image_size, image_size) in [0, 1].
            sample_codes: draw the codes at the quantiser's temperature instead of taking the nearest.
            past_key_values: a [`BlockCache`] with the blocks of the clip that were encoded before; `pixel_values_videos`
                are the blocks that follow, at least one. An empty one at the beginning of a clip.

        Raises:
            ValueError: for a shape that does not fit the configuration or the cache.
        """
        self._check_video(pixel_values_videos, past_key_values)
        latents = self.encoder(pixel_values_videos.to(self.dtype), past_key_values)
        quantizer_output = self.quantizer(latents, sample=sample_codes)
        return AdapTokEncoderOutput(
            codes=self._blocks(quantizer_output.codes),
            latents=self._blocks(latents),
            quantized=self._blocks(quantizer_output.quantized),
        )

    def decode(
        self,
        codes: torch.Tensor | None = None,
        token_counts: torch.Tensor | None = None,
        *,
        quantized: torch.Tensor | None = None,
        past_key_values: BlockCache | None = None,
    ) -> AdapTokDecoderOutput:
        """Codes (or quantised latents) -> video.

        Args:
            codes: (batch, blocks, latents_per_block) long. Values behind a block's count are never looked at by others.
            token_counts: (batch, blocks) long, how many leading tokens of each block are kept, 0..latents_per_block and
                at least 1 in the first block; `None` keeps all.
            quantized: (batch, blocks, latents_per_block, hidden_size), instead of `codes`.
            past_key_values: a [`BlockCache`] with the blocks of the clip that were decoded before (not the encoder's);
                the given blocks follow them. Only kept tokens are worked on.

        Raises:
            ValueError: if not exactly one of `codes` and `quantized` is given, or for shapes, codes or counts that do
                not fit the configuration.
        """
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
            past_key_values.check_next(config.decoder_attention_type, *given.shape[:2], config.num_blocks)
        follows = past_key_values is not None and past_key_values.num_blocks > 0
        self._check_token_counts(token_counts, given.shape[0], given.shape[1], follows)
        if quantized is None:
            if not torch.compiler.is_compiling() and (int(codes.min()) < 0 or int(codes.max()) >= config.codebook_size):
                raise ValueError(
                    f"codes must lie in 0..{config.codebook_size - 1}, got {int(codes.min())}..{int(codes.max())}"
                )
            quantized = self.quantizer.lookup(codes)
        return AdapTokDecoderOutput(pixel_values_videos=self.decoder(quantized, token_counts, past_key_values))

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        token_counts: torch.Tensor | None = None,
        sample_codes: bool | None = None,
        return_dict: bool | None = None,
    ) -> AdapTokOutput | tuple:
        """Encode, drop the tail of each block, decode: the training pass.

        Args:
            pixel_values_videos: (batch, frames, channels, image_size, image_size) in [0, 1].
            token_counts: (batch, blocks) long, see `decode`; the quantiser's losses are averaged over kept tokens.
            sample_codes: default: in training, if the configuration's quantiser is stochastic.
        """
        self._check_video(pixel_values_videos)
        num_blocks = pixel_values_videos.shape[1] // self.config.tubelet_size
        self._check_token_counts(token_counts, pixel_values_videos.shape[0], num_blocks)
        if sample_codes is None:
            sample_codes = self.training and self.config.stochastic_quantizer
        latents = self.encoder(pixel_values_videos.to(self.dtype))
        kept = None if token_counts is None else kept_tokens(token_counts, self.config.latents_per_block).flatten(1)
        quantizer_output = self.quantizer(latents, kept, sample_codes)
        quantized = self._blocks(quantizer_output.quantized)
        output = AdapTokOutput(
            pixel_values_videos=self.decoder(quantized, token_counts),
            codes=self._blocks(quantizer_output.codes),
            commitment_loss=quantizer_output.commitment_loss,
            codebook_loss=quantizer_output.codebook_loss,
            latents=self._blocks(latents),
            quantized=quantized,
            code_vectors=self._blocks(quantizer_output.code_vectors),
        )
        return output if (return_dict is None or return_dict) else output.to_tuple()


__all__ = ["AdapTokModel", "AdapTokPreTrainedModel"]
