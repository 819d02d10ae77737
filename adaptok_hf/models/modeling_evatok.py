"""The EVATok tokenizer: video <-> codes, with token counts that are chosen before encoding (arXiv 2603.12267)."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_masks import check_token_counts
from .block_cache import BlockCache
from .checked_loading import CheckedLoading
from .configuration_evatok import EVATokConfig
from .layers import LearnedPositions, PatchEmbedding, PatchHead, init_layer_weights, recorded_outputs
from .offloading import run_hooks
from .qformer_evatok import EVATokAttention, EVATokLayer, LatentRows, average_cells, run_qformer
from .quantization_evatok import EVATokQuantizer
from .tokenizer_inputs import TokenizerInputs


@dataclass
class EVATokEncoderOutput(ModelOutput):
    """
    Args:
        codes: (batch, blocks, latents_per_block) long; 0 after a block's count.
        latents: (batch, blocks, latents_per_block, latent_size), before quantization; 0 after a block's count.
        quantized: (batch, blocks, latents_per_block, latent_size), as the decoder reads it; 0 after a block's count.
        hidden_states: see [`EVATokOutput`]; the encoder's only.
        attentions, cross_attentions: see [`EVATokOutput`]; the encoder's only.
    """

    codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class EVATokDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values_videos: (batch, blocks * tubelet_size, channels, height, width). Trained to lie in [0, 1], not clamped.
        hidden_states: the input of the decoder's first layer and the output of each of its layers, (batch, patches,
            decoder_hidden_size).
        attentions, cross_attentions: see [`EVATokOutput`]; the decoder's only.
    """

    pixel_values_videos: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class EVATokOutput(ModelOutput):
    """
    Args:
        loss: scalar, mean absolute error of the pixels + 0.25 `commitment_loss` + `codebook_loss` + 0.02 `entropy_loss`.
        pixel_values_videos: (batch, frames, channels, height, width), the reconstruction, not clamped.
        codes: (batch, blocks, latents_per_block) long; 0 after a block's count.
        commitment_loss: scalar, mean squared distance of kept latents to their codebook vectors (gradient to the latents).
        codebook_loss: scalar, the same distance (gradient to the codebook).
        entropy_loss: scalar, the mean entropy of the tokens' code probabilities minus that of their mean; `None` in
            evaluation without a loss.
        latents: (batch, blocks, latents_per_block, latent_size), before quantization; 0 after a block's count.
        quantized: (batch, blocks, latents_per_block, latent_size), after quantization; 0 after a block's count.
        code_vectors: (batch, blocks, latents_per_block, codebook_dim), codebook vectors with the gradient of the latents.
        hidden_states: with `output_hidden_states`, the input of the encoder's first layer, the output of each of its
            layers, (batch, tokens, encoder_hidden_size), and then of each of the decoder's, (batch, patches,
            decoder_hidden_size). The encoder's tokens are the kept ones of a clip in a row, padded at the end.
        attentions: with `output_attentions`, the weights among queries in each layer of the encoder and then of the
            decoder, (batch, heads, queries, queries), 0 where a query does not see another.
        cross_attentions: the same, of queries to references: latents to patches, then patches to latents.
    """

    loss: torch.FloatTensor | None = None
    pixel_values_videos: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    entropy_loss: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    code_vectors: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


def patch_blocks(first: int, num_blocks: int, config: EVATokConfig, device: torch.device) -> torch.Tensor:
    """Return the block of each patch, (1, patches) long."""
    return torch.arange(first, first + num_blocks, device=device).repeat_interleave(config.patches_per_block)[None]


class EVATokEncoder(nn.Module):
    """Patches and token counts -> kept latents."""

    def __init__(self, config: EVATokConfig):
        super().__init__()
        self.config = config
        width, heads = config.encoder_hidden_size, config.num_encoder_attention_heads
        self.patch_embedding = PatchEmbedding(config, config.feature_size or width)
        if config.feature_size:
            self.feature_norm = nn.LayerNorm(config.feature_size, eps=config.layer_norm_eps)
            self.feature_projection = nn.Linear(config.feature_size, width)
        self.patch_positions = LearnedPositions(config.num_blocks * config.patches_per_block, width)
        self.latent_positions = LearnedPositions(config.num_latent_tokens, width)
        if config.query_init == "learned":
            self.queries = LearnedPositions(config.num_latent_tokens, width)
        else:
            self.query_projection = nn.Linear(width, width)
        self.layers = nn.ModuleList(EVATokLayer(config, i, width, heads) for i in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.latent_size)

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        rows: LatentRows,
        past_key_values: BlockCache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> torch.Tensor:
        """Return the kept latents of blocks, (batch, length, latent_size).

        Args:
            pixel_values_videos: (batch, frames, channels, height, width) in [0, 1].
            rows: where the latents lie.
            past_key_values: holds the blocks before these.
            output_hidden_states, output_attentions: whether they are recorded.
        """
        if not len(pixel_values_videos):
            return pixel_values_videos.new_zeros(0, rows.places.shape[1], self.config.latent_size)
        patches = self.patch_embedding(pixel_values_videos - 0.5)
        if self.config.feature_size:
            patches = self.feature_projection(self.feature_norm(patches))
        return self.encode_patches(patches, rows, past_key_values, output_attentions)

    def encode_patches(
        self,
        patches: torch.Tensor,
        rows: LatentRows,
        past_key_values: BlockCache | None = None,
        output_attentions: bool = False,
    ) -> torch.Tensor:
        """Return the kept latents of embedded patches, (batch, blocks * patches, encoder_hidden_size); see `forward`."""
        config, first = self.config, past_key_values.num_blocks if past_key_values is not None else 0
        num_blocks = patches.shape[1] // config.patches_per_block
        blocks = rows.blocks, patch_blocks(first, num_blocks, config, patches.device)
        positions = (
            rows.take(self.latent_positions()[:, first * config.latents_per_block :]),
            self.patch_positions()[:, first * config.patches_per_block :][:, : patches.shape[1]],
        )
        queries = self.first_queries(patches, rows, first)
        states = run_qformer(self.layers, queries, patches, positions, blocks, past_key_values, output_attentions)
        if past_key_values is not None:
            past_key_values.num_blocks += num_blocks
        return self.projection(self.norm(states))

    def first_queries(self, patches: torch.Tensor, rows: LatentRows, first: int = 0) -> torch.Tensor:
        """Return what the latents of blocks start from, (batch, length, encoder_hidden_size).

        Args:
            patches: (batch, blocks * patches, encoder_hidden_size).
            rows: where the latents lie.
            first: blocks of the clip before these.
        """
        config = self.config
        if config.query_init == "learned":
            return rows.take(self.queries()[:, first * config.latents_per_block :]).expand(len(patches), -1, -1)
        grid = patches.unflatten(1, (-1, config.grid_size, config.grid_size))
        if config.query_init == "mean":
            starts = grid.mean((2, 3))[:, :, None].expand(-1, -1, config.latents_per_block, -1)
        else:
            starts = average_cells(grid, config.latents_per_block)
        return self.query_projection(rows.take(starts.flatten(1, 2)))


class EVATokDecoder(nn.Module):
    """Kept latents -> video."""

    def __init__(self, config: EVATokConfig):
        super().__init__()
        self.config = config
        width, heads = config.decoder_hidden_size, config.num_decoder_attention_heads
        self.latent_norm = nn.LayerNorm(config.latent_size, eps=config.layer_norm_eps)
        self.latent_projection = nn.Linear(config.latent_size, width)
        self.latent_positions = LearnedPositions(config.num_latent_tokens, width)
        self.patch_positions = LearnedPositions(config.num_blocks * config.patches_per_block, width)
        self.layers = nn.ModuleList(EVATokLayer(config, i, width, heads) for i in range(config.num_decoder_layers))
        self.head = PatchHead(config, width, config.layer_norm_eps)

    def forward(
        self,
        quantized: torch.Tensor,
        rows: LatentRows,
        past_key_values: BlockCache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> torch.Tensor:
        """Return the video of blocks, (batch, frames, channels, height, width).

        Args:
            quantized: (batch, blocks, latents_per_block, latent_size).
            rows: where the kept latents lie.
            past_key_values: holds the blocks before these.
            output_hidden_states, output_attentions: whether they are recorded.
        """
        config = self.config
        if not len(quantized):
            size = (config.num_channels, config.image_size, config.image_size)
            return quantized.new_zeros(0, quantized.shape[1] * config.tubelet_size, *size)
        return self.head(self.decode_patches(quantized, rows, past_key_values, output_attentions)) + 0.5

    def decode_patches(
        self,
        quantized: torch.Tensor,
        rows: LatentRows,
        past_key_values: BlockCache | None = None,
        output_attentions: bool = False,
    ) -> torch.Tensor:
        """Return the patches after the last layer, (batch, blocks * patches, decoder_hidden_size); see `forward`."""
        config, first = self.config, past_key_values.num_blocks if past_key_values is not None else 0
        num_blocks = quantized.shape[1]
        latents = self.latent_projection(self.latent_norm(rows.take(quantized.flatten(1, 2))))
        # all patches of a block start as its first latent
        queries = self.latent_projection(self.latent_norm(quantized[:, :, 0]))
        queries = queries.repeat_interleave(config.patches_per_block, dim=1)
        blocks = patch_blocks(first, num_blocks, config, quantized.device), rows.blocks
        positions = (
            self.patch_positions()[:, first * config.patches_per_block :][:, : queries.shape[1]],
            rows.take(self.latent_positions()[:, first * config.latents_per_block :]),
        )
        states = run_qformer(self.layers, queries, latents, positions, blocks, past_key_values, output_attentions)
        if past_key_values is not None:
            past_key_values.num_blocks += num_blocks
        return states


class EVATokPreTrainedModel(TokenizerInputs, CheckedLoading, PreTrainedModel):
    config_class = EVATokConfig
    base_model_prefix = ""
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: `Trainer` divides it when it accumulates gradients
    _no_split_modules = ["EVATokLayer"]
    _can_record_outputs = {
        "hidden_states": EVATokLayer,
        "attentions": OutputRecorder(EVATokAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(EVATokAttention, index=1, layer_name="cross_attention"),
    }
    _supports_sdpa = True
    _supports_flash_attn = False  # has no way to express the block masks
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        init_layer_weights(module, self.config.initializer_range)
        if isinstance(module, EVATokQuantizer):  # rows of unit length on average
            init.normal_(module.codebook.weight, std=self.config.codebook_dim**-0.5)


class EVATokModel(EVATokPreTrainedModel):
    """Adaptive, temporally causal video tokenizer that makes as many tokens of a block as it is asked for.

    Fewer tokens are not the first of more: token counts are an input of `encode`, chosen by a router
    ([`AdapTokRouterModel`]), a schedule or a search, and `decode` needs the same. The first `k` blocks of a clip are
    encoded and decoded alike whether or not later blocks are given, so every method also takes clips of fewer than
    `config.num_blocks` blocks. `encode` and `decode` also take a clip a few blocks at a time, with a [`BlockCache`] each.

    Attributes:
        prefix_decodable (`bool`): `False`, see [`AdapTokModel`].
    """

    prefix_decodable = False

    def __init__(self, config: EVATokConfig):
        super().__init__(config)
        self.encoder = EVATokEncoder(config)
        self.quantizer = EVATokQuantizer(config)
        self.decoder = EVATokDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.patch_embedding.projection

    def _rows(
        self, token_counts: torch.Tensor | None, batch: int, num_blocks: int, cache: BlockCache | None = None
    ) -> LatentRows:
        """Return where the latents lie; `ValueError` for counts that are not levels."""
        config, device = self.config, self.device
        if token_counts is None:
            token_counts = torch.full((batch, num_blocks), config.latents_per_block, device=device)
        check_token_counts(token_counts, batch, num_blocks, config.latents_per_block)
        token_counts = token_counts.to(device)
        if not torch.compiler.is_compiling():
            found = set(token_counts.unique().tolist()) - {0, *config.levels}
            if found:
                raise ValueError(f"token_counts must be among the levels {config.levels}, got {sorted(found)}")
            is_filled = token_counts > 0
            wrong = (is_filled[:, 1:] & ~is_filled[:, :-1]).any(1)
            if cache is None or cache.num_blocks == 0:
                wrong = wrong | ~is_filled[:, 0]
            if wrong.any():
                raise ValueError(
                    f"token_counts may be 0 only in the blocks after a video's end, got {token_counts[wrong][0].tolist()}"
                )
        return LatentRows.of(token_counts, config, 0 if cache is None else cache.num_blocks)

    def _blocks(self, states: torch.Tensor, rows: LatentRows, num_blocks: int) -> torch.Tensor:
        """(batch, length, ...) -> (batch, blocks, latents_per_block, ...)."""
        states = rows.put_back(states, num_blocks * self.config.latents_per_block)
        return states.unflatten(1, (num_blocks, -1))

    @run_hooks
    @capture_outputs
    def encode(
        self,
        pixel_values_videos: torch.Tensor,
        token_counts: torch.Tensor,
        sample_codes: bool = False,
        past_key_values: BlockCache | None = None,
        **kwargs,
    ) -> EVATokEncoderOutput:
        """Video -> codes.

        Args:
            pixel_values_videos: (batch, frames, channels, image_size, image_size), floats in [0, 1] or integers 0..255.
            token_counts: (batch, blocks) long, how many tokens each block gets, from `config.levels`; 0 for blocks after a
                video's end, which only fill up its last clip.
            sample_codes: draw the codes at the quantizer's temperature instead of taking the nearest.
            past_key_values: a [`BlockCache`] with the blocks of the clip that were encoded before; `pixel_values_videos`
                are the blocks that follow, at least one. An empty one at the beginning of a clip.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: for a shape that does not fit the configuration or the cache, counts that are not levels, and values
                outside the range.
        """
        recorded = recorded_outputs(self.config, kwargs, len(self.encoder.layers))
        self._check_sampling(sample_codes)
        self.check_video(pixel_values_videos, "block_causal", past_key_values)
        num_blocks = pixel_values_videos.shape[1] // self.config.tubelet_size
        rows = self._rows(token_counts, len(pixel_values_videos), num_blocks, past_key_values)
        latents = self.encoder(self.to_pixels(pixel_values_videos), rows, past_key_values, **recorded)
        quantizer_output = self.quantizer(latents, sample=sample_codes)
        return EVATokEncoderOutput(
            codes=self._blocks(quantizer_output.codes, rows, num_blocks),
            latents=self._blocks(latents, rows, num_blocks),
            quantized=self._blocks(quantizer_output.quantized, rows, num_blocks),
        )

    def _check_sampling(self, sample_codes: bool) -> None:
        if sample_codes and not self.config.normalized_codes:
            raise ValueError("sample_codes=True samples by cosines: it needs a model with normalized_codes=True")

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
    ) -> EVATokDecoderOutput:
        """Codes (or quantized latents) -> video.

        Args:
            codes: (batch, blocks, latents_per_block) long. Values after a block's count have no influence.
            token_counts: (batch, blocks) long, those of `encode`; `None`: `latents_per_block` everywhere.
            quantized: (batch, blocks, latents_per_block, latent_size), instead of `codes`.
            past_key_values: a [`BlockCache`] with the blocks of the clip that were decoded before (not the encoder's);
                the given blocks follow them.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: if not exactly one of `codes` and `quantized` is given, or for shapes, codes or counts that do
                not fit the configuration.
        """
        recorded = recorded_outputs(self.config, kwargs, len(self.decoder.layers))
        batch, num_blocks = self.check_tokens(codes, quantized, "block_causal", past_key_values)
        rows = self._rows(token_counts, batch, num_blocks, past_key_values)
        if quantized is None:
            quantized = self.look_up(codes)
        return EVATokDecoderOutput(pixel_values_videos=self.decoder(quantized, rows, past_key_values, **recorded))

    @capture_outputs
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        token_counts: torch.Tensor | None = None,
        sample_codes: bool | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> EVATokOutput:
        """Encode, quantize and decode: the training pass.

        Args:
            pixel_values_videos: as in `encode`; in training without `return_loss` their values are not checked, which would
                wait for the device.
            token_counts: (batch, blocks) long, from `config.levels`; `None`: `latents_per_block` everywhere.
            sample_codes: default: in training, if the configuration's quantizer is stochastic.
            return_loss: whether to compute `loss`, which a plain `Trainer` minimizes. It has those of the paper's terms
                that need no other network; `training_scripts/train_tokenizer.py` has all.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        recorded = recorded_outputs(self.config, kwargs)
        self.check_video(pixel_values_videos, "block_causal")
        batch, num_blocks = len(pixel_values_videos), pixel_values_videos.shape[1] // self.config.tubelet_size
        rows = self._rows(token_counts, batch, num_blocks)
        if sample_codes is None:
            sample_codes = self.training and self.config.stochastic_quantizer
        self._check_sampling(sample_codes)
        pixels = self.to_pixels(pixel_values_videos, check=return_loss or not self.training)
        latents = self.encoder(pixels, rows, **recorded)
        kept = rows.kept.expand(batch, -1)
        quantizer_output = self.quantizer(latents, kept, sample_codes, return_entropy=self.training or return_loss)
        quantized = self._blocks(quantizer_output.quantized, rows, num_blocks)
        video, loss = self.decoder(quantized, rows, **recorded), None
        if return_loss:
            loss = (video.float() - pixels.float()).abs().mean()
            loss = loss + 0.25 * quantizer_output.commitment_loss + quantizer_output.codebook_loss
            loss = loss + 0.02 * quantizer_output.entropy_loss
        return EVATokOutput(
            loss=loss,
            pixel_values_videos=video,
            codes=self._blocks(quantizer_output.codes, rows, num_blocks),
            commitment_loss=quantizer_output.commitment_loss,
            codebook_loss=quantizer_output.codebook_loss,
            entropy_loss=quantizer_output.entropy_loss,
            latents=self._blocks(latents, rows, num_blocks),
            quantized=quantized,
            code_vectors=self._blocks(quantizer_output.code_vectors, rows, num_blocks),
        )


__all__ = ["EVATokModel", "EVATokPreTrainedModel"]
