"""The AdapTok tokenizer: video <-> codes, a temporal block at a time, from any prefix of each block's tokens."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .attention_masks import check_token_counts, kept_tokens
from .block_cache import BlockCache
from .block_sequence import lay_out, run_blocks
from .checked_loading import CheckedLoading
from .configuration_adaptok import AdapTokConfig
from .layers import (
    AdapTokAttention,
    AdapTokLayer,
    LearnedPositions,
    PatchEmbedding,
    PatchHead,
    SinCosPositions,
    init_layer_weights,
    latent_positions,
    patch_positions,
    recorded_outputs,
)
from .offloading import run_hooks
from .quantization import VectorQuantizer
from .tokenizer_inputs import TokenizerInputs


@dataclass
class AdapTokEncoderOutput(ModelOutput):
    """
    Args:
        codes: (batch, blocks, latents_per_block) long, codebook indices at full width.
        latents: (batch, blocks, latents_per_block, hidden_size), the encoder's output before quantisation.
        quantized: (batch, blocks, latents_per_block, hidden_size), the codes' vectors as decoder and scorer read them.
        hidden_states: see [`AdapTokOutput`]; the encoder's only.
        attentions: see [`AdapTokOutput`]; the encoder's only.
    """

    codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AdapTokDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values_videos: (batch, blocks * tubelet_size, channels, height, width). Trained to lie in [0, 1], not clamped.
        hidden_states: the input of the decoder's first layer and the output of each of its layers.
        attentions: see [`AdapTokOutput`]; the decoder's only.
    """

    pixel_values_videos: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AdapTokOutput(ModelOutput):
    """
    Args:
        loss: scalar, mean absolute error of the pixels + 0.025 `commitment_loss` + 0.1 `codebook_loss`.
        pixel_values_videos: (batch, frames, channels, height, width), the reconstruction, not clamped.
        codes: (batch, blocks, latents_per_block) long.
        commitment_loss: scalar, mean squared distance of kept latents to their codebook vectors (gradient to the latents).
        codebook_loss: scalar, the same distance (gradient to the codebook).
        latents: (batch, blocks, latents_per_block, hidden_size), before quantisation.
        quantized: (batch, blocks, latents_per_block, hidden_size), after quantisation.
        code_vectors: (batch, blocks, latents_per_block, codebook_dim), unit codebook vectors, straight-through gradient.
        hidden_states: with `output_hidden_states`, the input of the encoder's first layer, the output of each of its layers
            and then of each of the decoder's, (batch, tokens, hidden_size). The tokens lie block after block, latents
            before patches; the decoder's are without the latents that no clip keeps.
        attentions: with `output_attentions`, the weights of each layer of the encoder and then of the decoder, (batch,
            heads, tokens, tokens), 0 where a token does not see another.
    """

    loss: torch.FloatTensor | None = None
    pixel_values_videos: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    code_vectors: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


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


def next_blocks(
    table: torch.Tensor, type_embedding: TypeEmbedding | None, past_key_values: BlockCache | None, shape: tuple[int, int]
) -> torch.Tensor:
    """Return what a position table and a type embedding give for the blocks that follow those in the cache.

    Args:
        table: (1, blocks of a clip * tokens, width).
        shape: number of blocks, and of tokens in each.

    Returns:
        (1, *shape, width).
    """
    first = 0 if past_key_values is None else past_key_values.num_blocks
    rows = table.unflatten(1, (-1, shape[1]))[:, first : first + shape[0]]
    return rows if type_embedding is None else rows + type_embedding()


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

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        past_key_values: BlockCache | None = None,
        **recorded: bool,
    ) -> torch.Tensor:
        """Return the latents of blocks.

        Args:
            pixel_values_videos: (batch, frames, channels, height, width).
            past_key_values: holds the blocks before these.
            recorded: `output_hidden_states` and `output_attentions`, see `run_blocks`.

        Returns:
            (batch, blocks * latents_per_block, hidden_size).
        """
        config, cache = self.config, past_key_values
        if not pixel_values_videos.shape[0]:
            num_latents = pixel_values_videos.shape[1] // config.tubelet_size * config.latents_per_block
            return pixel_values_videos.new_zeros(0, num_latents, config.hidden_size)
        patches = self.patch_embedding(pixel_values_videos).unflatten(1, (-1, config.patches_per_block))
        batch, num_blocks, num_patches = patches.shape[:3]
        # fixed position tables stay float32 when weights are loaded in half precision
        dtype = pixel_values_videos.dtype
        patches = patches + next_blocks(self.patch_positions(), self.patch_type, cache, (num_blocks, num_patches))
        latents = next_blocks(self.latent_queries(), self.latent_type, cache, (num_blocks, config.latents_per_block))
        sequence = lay_out(latents.to(dtype).expand(batch, -1, -1, -1), patches.to(dtype), None, cache)
        attention_type = config.encoder_attention_type
        return run_blocks(self.layers, attention_type, sequence, "latent", past_key_values=cache, **recorded)


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
        **recorded: bool,
    ) -> torch.Tensor:
        """Return the video of blocks, (batch, frames, channels, height, width).

        Args:
            quantized: (batch, blocks, latents_per_block, hidden_size).
            token_counts: (batch, blocks) long, the leading latents of each block that are kept; `None` keeps all.
            past_key_values: holds the blocks before these.
            recorded: `output_hidden_states` and `output_attentions`, see `run_blocks`.
        """
        config, cache, dtype = self.config, past_key_values, quantized.dtype
        batch, num_blocks, num_latents, width = quantized.shape
        if not batch:
            size = (config.num_channels, config.image_size, config.image_size)
            return quantized.new_zeros(0, num_blocks * config.tubelet_size, *size)
        latents = quantized + next_blocks(self.latent_positions(), self.latent_type, cache, (num_blocks, num_latents))
        patches = next_blocks(self.patch_queries(), self.patch_type, cache, (num_blocks, config.patches_per_block))
        patches = patches.to(dtype).expand(batch, -1, -1, -1)
        sequence = lay_out(latents.to(dtype), patches, token_counts, cache, pack=not any(recorded.values()))
        attention_type = config.decoder_attention_type
        patches = run_blocks(self.layers, attention_type, sequence, "patch", past_key_values=cache, **recorded)
        return self.head(patches.reshape(batch, -1, width))


class AdapTokPreTrainedModel(TokenizerInputs, CheckedLoading, PreTrainedModel):
    config_class = AdapTokConfig
    base_model_prefix = ""
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: `Trainer` divides it when it accumulates gradients
    _no_split_modules = ["AdapTokLayer"]
    _can_record_outputs = {"hidden_states": AdapTokLayer, "attentions": AdapTokAttention}
    _supports_sdpa = True
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

    Attributes:
        prefix_decodable (`bool`): the codes of fewer tokens are the first of those of more, so counts can be chosen after
            encoding.
    """

    prefix_decodable = True

    def __init__(self, config: AdapTokConfig):
        super().__init__(config)
        self.encoder = AdapTokEncoder(config)
        self.quantizer = VectorQuantizer(config)
        self.decoder = AdapTokDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.patch_embedding.projection

    def _check_token_counts(
        self, token_counts: torch.Tensor | None, batch: int, num_blocks: int, follows: bool = False
    ) -> None:
        """`follows`: there are blocks before these, so the first of them may be empty."""
        if token_counts is None:
            return
        if not self.config.adaptive:
            raise ValueError("this tokenizer is not adaptive (CausalTok, LARP): it takes no token_counts")
        check_token_counts(token_counts, batch, num_blocks, self.config.latents_per_block)
        if not follows and batch and not torch.compiler.is_compiling() and int(token_counts[:, 0].min()) < 1:
            raise ValueError("the first block of a clip must keep at least 1 token, got 0")

    def _blocks(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, blocks * latents_per_block, ...) -> (batch, blocks, latents_per_block, ...)."""
        return tokens.unflatten(1, (-1, self.config.latents_per_block))

    @run_hooks
    @capture_outputs
    def encode(
        self,
        pixel_values_videos: torch.Tensor,
        sample_codes: bool = False,
        past_key_values: BlockCache | None = None,
        **kwargs,
    ) -> AdapTokEncoderOutput:
        """Video -> codes.

        Args:
            pixel_values_videos: (batch, frames, channels, image_size, image_size), floats in [0, 1] or integers 0..255.
            sample_codes: draw the codes at the quantiser's temperature instead of taking the nearest.
            past_key_values: a [`BlockCache`] with the blocks of the clip that were encoded before; `pixel_values_videos`
                are the blocks that follow, at least one. An empty one at the beginning of a clip.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: for a shape that does not fit the configuration or the cache, and for values outside the range.
        """
        recorded = recorded_outputs(self.config, kwargs, len(self.encoder.layers))
        self.check_video(pixel_values_videos, self.config.encoder_attention_type, past_key_values)
        pixels = self.to_pixels(pixel_values_videos)
        latents = self.encoder(pixels, past_key_values, **recorded)
        quantizer_output = self.quantizer(latents, sample=sample_codes)
        return AdapTokEncoderOutput(
            codes=self._blocks(quantizer_output.codes),
            latents=self._blocks(latents),
            quantized=self._blocks(quantizer_output.quantized),
        )

    @run_hooks
    @capture_outputs
    def decode(
        self,
        codes: torch.Tensor | None = None,
        token_counts: torch.Tensor | None = None,
        *,
        quantized: torch.Tensor | None = None,
        past_key_values: BlockCache | None = None,
        **kwargs,
    ) -> AdapTokDecoderOutput:
        """Codes (or quantised latents) -> video.

        Args:
            codes: (batch, blocks, latents_per_block) long. Values after a block's count are ignored.
            token_counts: (batch, blocks) long, how many leading tokens of each block are kept, 0..latents_per_block and
                at least 1 in the first block; `None` keeps all.
            quantized: (batch, blocks, latents_per_block, hidden_size), instead of `codes`.
            past_key_values: a [`BlockCache`] with the blocks of the clip that were decoded before (not the encoder's);
                the given blocks follow them. Only kept tokens are worked on.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: if not exactly one of `codes` and `quantized` is given, or for shapes, codes or counts that do
                not fit the configuration.
        """
        config, recorded = self.config, recorded_outputs(self.config, kwargs, len(self.decoder.layers))
        batch, num_blocks = self.check_tokens(codes, quantized, config.decoder_attention_type, past_key_values)
        follows = past_key_values is not None and past_key_values.num_blocks > 0
        self._check_token_counts(token_counts, batch, num_blocks, follows)
        if quantized is None:
            quantized = self.look_up(codes)
        video = self.decoder(quantized, token_counts, past_key_values, **recorded)
        return AdapTokDecoderOutput(pixel_values_videos=video)

    @capture_outputs
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        token_counts: torch.Tensor | None = None,
        sample_codes: bool | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> AdapTokOutput:
        """Encode, drop the tail of each block, decode: the training pass.

        Args:
            pixel_values_videos: as in `encode`; in training without `return_loss` their values are not checked, which would
                wait for the device.
            token_counts: (batch, blocks) long, see `decode`; the quantiser's losses are averaged over kept tokens.
            sample_codes: default: in training, if the configuration's quantiser is stochastic.
            return_loss: whether to compute `loss`, which a plain `Trainer` minimizes. It has those of the paper's terms
                that need no other network; `training_scripts/train_tokenizer.py` has all.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        recorded = recorded_outputs(self.config, kwargs)
        self.check_video(pixel_values_videos, self.config.encoder_attention_type)
        num_blocks = pixel_values_videos.shape[1] // self.config.tubelet_size
        self._check_token_counts(token_counts, pixel_values_videos.shape[0], num_blocks)
        if sample_codes is None:
            sample_codes = self.training and self.config.stochastic_quantizer
        pixels = self.to_pixels(pixel_values_videos, check=return_loss or not self.training)
        latents = self.encoder(pixels, **recorded)
        kept = None
        if token_counts is not None:
            kept = kept_tokens(token_counts, self.config.latents_per_block).flatten(1).to(latents.device)
        quantizer_output = self.quantizer(latents, kept, sample_codes)
        quantized = self._blocks(quantizer_output.quantized)
        video, loss = self.decoder(quantized, token_counts, **recorded), None
        if return_loss:
            loss = (video.float() - pixels.float()).abs().mean()
            loss = loss + 0.025 * quantizer_output.commitment_loss + 0.1 * quantizer_output.codebook_loss
        return AdapTokOutput(
            loss=loss,
            pixel_values_videos=video,
            codes=self._blocks(quantizer_output.codes),
            commitment_loss=quantizer_output.commitment_loss,
            codebook_loss=quantizer_output.codebook_loss,
            latents=self._blocks(latents),
            quantized=quantized,
            code_vectors=self._blocks(quantizer_output.code_vectors),
        )


__all__ = ["AdapTokModel", "AdapTokPreTrainedModel"]
