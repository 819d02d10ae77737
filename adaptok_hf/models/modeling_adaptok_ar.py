"""The AdapTok generator: a Llama that writes block sequences of codes and `<EOB>`."""

import math
from collections.abc import Sequence
from functools import wraps

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LlamaModel,
    LogitsProcessorList,
    PreTrainedModel,  # noqa: F401  diffusers knows a component by a base class in its module
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerateOutput
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils import can_return_tuple

from .checked_loading import CheckedLoading
from .configuration_adaptok_ar import AdapTokARConfig
from .generation_adaptok import (
    ActiveRows,
    BlockGuesses,
    CandidatesUntilStop,
    ClipFinished,
    SeededNoise,
    check_number,
    check_seeds,
    in_eval_mode,
)
from .generation_layouts_adaptok import layout_rules
from .generation_loop_adaptok import StaticDecoder, is_compiled, takes_loop, write_sequences
from .generation_options_adaptok import check_decoding, merge_options
from .layers import LearnedPositions, SinCosPositions, init_layer_weights, latent_positions
from .replaceable_classes import ReplaceableClasses
from .sequence_inputs import SequenceInputs
from .token_layout import count_blocks, fill_clips, unpack_clips


class NoRotation(nn.Module):
    """Stands in for the rotary embedding where positions are added to the embeddings instead."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.head_dim = head_dim

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine 1 and sine 0, each (batch, sequence, head_dim)."""
        cosine = hidden_states.new_ones(*position_ids.shape, self.head_dim)
        return cosine, torch.zeros_like(cosine)


class AdapTokARDecoderLayer(LlamaDecoderLayer):
    """Llama's layer with dropout after the attention and the MLP."""

    def __init__(self, config: AdapTokARConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.residual_dropout, self.mlp_dropout = config.residual_dropout, config.mlp_dropout

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + nn.functional.dropout(attended, self.residual_dropout, self.training)
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + nn.functional.dropout(output, self.mlp_dropout, self.training)


def _init_ar_weights(module: nn.Module, std: float) -> bool:
    """Fills a position table; `False` for other modules."""
    if isinstance(module, LearnedPositions | SinCosPositions):
        init_layer_weights(module, std)
        return True
    return False


class AdapTokARModel(CheckedLoading, LlamaModel):
    """Llama's stack, with dropout, and with an absolute position table if the configuration asks for it."""

    config_class = AdapTokARConfig
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]
    _no_split_modules = ["AdapTokARDecoderLayer"]
    _can_record_outputs = {"hidden_states": AdapTokARDecoderLayer, "attentions": LlamaAttention}

    def __init__(self, config: AdapTokARConfig):
        super(LlamaModel, self).__init__(config)  # not LlamaModel's own, which would build its layers
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(AdapTokARDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.positions = None
        if config.position_embedding == "rope":
            self.rotary_emb = LlamaRotaryEmbedding(config)
        else:
            self.rotary_emb = NoRotation(config.head_dim)
            length, width = config.max_position_embeddings - 1, config.hidden_size  # the last token is never read
            if config.learned_positions:
                self.positions = LearnedPositions(length, width)
            else:
                self.positions = SinCosPositions(lambda: latent_positions(length, width, 10000.0))
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module):
        if not _init_ar_weights(module, self.config.initializer_range):
            super()._init_weights(module)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if self.positions is not None:
            if position_ids is None:
                seen = past_key_values.get_seq_length() if past_key_values is not None else 0
                position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]
            # The last token of a full sequence is there in training only, and nothing is read from it.
            table = self.positions()[0]
            inputs_embeds = inputs_embeds + table[position_ids.clamp(max=len(table) - 1)].to(inputs_embeds.dtype)
        inputs_embeds = nn.functional.dropout(inputs_embeds, self.config.embedding_dropout, self.training)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class AdapTokARForCausalLM(SequenceInputs, CheckedLoading, ReplaceableClasses, LlamaForCausalLM):
    """Generator of block sequences (AdapTok, arXiv 2505.17011): class-conditional, or continuing given frames.

    A sequence is a prompt (a class, or the codes of the condition clip and a separator), then the kept codes of each block,
    each block closed by `<EOB>`; or in one of the other layouts of [`AdapTokARConfig`]. With `position_embedding="rope"` a
    saved folder is a plain Llama's.
    """

    config_class = AdapTokARConfig
    _auto_class = "AutoModelForCausalLM"  # saved folders carry the code, for trust_remote_code
    _no_split_modules = ["AdapTokARDecoderLayer"]

    def __init__(self, config: AdapTokARConfig):
        super(LlamaForCausalLM, self).__init__(config)
        self.model = AdapTokARModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.generation_config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,  # transformers' default would be 50
            top_p=1.0,
            max_new_tokens=config.max_sequence_length,
            suppress_tokens=config.conditioning_token_ids or None,
        )

    def _init_weights(self, module):
        if not _init_ar_weights(module, self.config.initializer_range):
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As [`LlamaForCausalLM`]'s, but the loss is taken over codes and `<EOB>` (or length tokens) only, and in
        training a share `config.class_dropout` of the clips loses its class.

        Args:
            input_ids: (batch, sequence) long, see `build_inputs`.
            labels: (batch, sequence) long, the same ids, -100 where nothing is to be learned. Conditioning ids count
                as -100.
        """
        config = self.config
        if self.training and config.is_class_conditional and config.class_dropout and input_ids is not None:
            is_class = (input_ids >= config.first_class_token_id) & (input_ids < config.null_class_token_id)
            dropped = torch.rand(len(input_ids), 1, device=input_ids.device) < config.class_dropout
            input_ids = torch.where(is_class & dropped, config.null_class_token_id, input_ids)
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{name: value for name, value in kwargs.items() if name not in ("num_items_in_batch", "shift_labels")},
        )
        if labels is not None:
            size = config.num_sequence_ids
            targets = {"labels": labels, "shift_labels": kwargs.get("shift_labels")}  # the second where a clip is split
            targets = {name: ids.masked_fill(ids >= size, -100) for name, ids in targets.items() if ids is not None}
            items = {name: kwargs[name] for name in ("num_items_in_batch",) if name in kwargs}
            loss = self.loss_function(logits=output.logits[..., :size], vocab_size=size, **targets, **items)
            output = CausalLMOutputWithPast(loss=loss, **output)  # a new one, since the loss is a tuple's first item
        return output

    @wraps(LlamaForCausalLM.save_pretrained)  # diffusers reads from the signature what it can pass, such as `variant`
    def save_pretrained(self, *args, **kwargs):
        """Save as transformers does; the folder's code also has the model without its head, for `AutoModel`."""
        base = f"{type(self.model).__module__.rpartition('.')[2]}.{type(self.model).__name__}"
        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | {"AutoModel": base}
        super().save_pretrained(*args, **kwargs)

    def unpack_sequences(
        self,
        sequences: torch.Tensor | GenerateOutput,
        condition_codes: torch.Tensor | None = None,
        *,
        fill: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `generate` returned -> what the tokenizer decodes.

        Args:
            sequences: (batch, length) long, prompts included, or transformers' output that holds them.
            condition_codes: as in `build_prompt`; their first `start_block` blocks stand before the generated ones, whole
                or with `condition_counts` codes each.
            fill: whether the sequences may lack what follows, since they were stopped early: no more tokens; in a layout
                that needs some, code 0 in the shortest blocks.

        Returns:
            codes: (batch, blocks, latents_per_block) long, of whole clips;
            token_counts: (batch, blocks) long.
        """
        config = self.config
        generated = getattr(sequences, "sequences", sequences)[:, config.prompt_length :]
        given = None
        if config.start_block:
            if condition_codes is None:
                raise ValueError(f"condition_codes are needed: they hold the first {config.start_block} blocks")
            given = condition_codes[:, : config.start_block].to(generated.device)
        return unpack_clips(config, fill_clips(config, generated) if fill else generated, given)

    def count_blocks(self, sequences: torch.Tensor) -> torch.LongTensor:
        """Return how many blocks of each sequence are complete, (batch,); sequences begin with their prompts."""
        return count_blocks(self.config, sequences[:, self.config.prompt_length :])

    @in_eval_mode
    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        class_labels: torch.Tensor | Sequence[int] | None = None,
        condition_codes: torch.Tensor | None = None,
        seeds: torch.Tensor | Sequence[int] | None = None,
        guidance_scale: float | None = None,
        guidance_interval: int | None = None,
        max_tokens: int | torch.Tensor | Sequence[int] | None = None,
        allowed_lengths: Sequence[int] | Sequence[Sequence[int]] | None = None,
        lookahead: int = 1,
        **kwargs,
    ) -> GenerateOutput | torch.LongTensor:
        """Write valid block sequences, by [`GenerationMixin.generate`] and its decoding loops.

        Rows that have finished leave the model's batch once they are half of it.

        Args:
            inputs: (batch, length) long, a prompt, or a sequence's beginning with its prompt; or give `class_labels` or
                `condition_codes`, see `build_prompt`.
            generation_config, logits_processor, stopping_criteria, kwargs: as usual. `do_sample`, `temperature`, `top_k`,
                `top_p`, `min_p` and the like choose how tokens are sampled (default: those of the model's
                `generation_config`); `compile_config` compiles the step of a token, rules and samples included: half a
                minute, once for each batch size and set of these options.
            seeds: one seed per sequence: the samples of a row depend on its seed, not on the rest of the batch.
                Default: sampled from torch's global generator.
            guidance_scale: classifier-free guidance, `u + scale * (c - u)`; 1 is none. Class-conditional models only.
            guidance_interval: guidance stops after this token, counted from 0 after the first one, as in the original.
            max_tokens: the most codes to write, `<EOB>` not counted. An integer caps the total of each sequence. Integers
                of shape (generated blocks,) or (batch, generated blocks) cap each block, for example at the counts that
                were allocated to another clip. Not in a layout without separators, which has all codes.
            allowed_lengths: of a generator with `length_tokens`, those that may be written: for every block the same, or a
                list for each generated block. One number each makes clips of exactly these counts.
            lookahead: tokens of one pass of the model, of which those stand that it would have written one by one (see
                `BlockGuesses`): the same sequence in fewer passes, up to float round-off. For a batch of 1 without
                guidance and with a dynamic cache.

        Returns:
            (batch, length) long, prompts included; rows are filled with `<EOB>`, or code 0 where there is none. See
            `unpack_sequences`. Or transformers' output, with `return_dict_in_generate=True`.

        Raises:
            ValueError: for a bad condition or cap, guidance without a null class, or an option that is not supported
                or does not apply.
        """
        prompt = kwargs.pop("input_ids", inputs)
        if generation_config is not None and generation_config.is_assistant:  # the other model has prepared everything
            return super().generate(prompt, generation_config, logits_processor, stopping_criteria, **kwargs)
        prompt = self._check_prompt(prompt, class_labels, condition_codes, kwargs.pop("attention_mask", None))
        settings, kwargs = merge_options(self, prompt.shape[1], generation_config, kwargs)
        scale = settings.guidance_scale if guidance_scale is None else guidance_scale
        scale, settings.guidance_scale = 1.0 if scale is None else scale, None
        self._check_guidance(scale, guidance_interval)
        number = len(prompt) * (settings.num_return_sequences or 1)
        check_decoding(settings, number, scale, lookahead, kwargs, seeds is not None)
        has_beams = (settings.num_beams or 1) > 1
        noise = None
        if settings.do_sample and not has_beams:
            seeds = torch.randint(2**63 - 1, (number,)) if seeds is None else seeds
            noise = SeededNoise(check_seeds(seeds, number), self.config.prompt_length, bool(settings.output_scores))
        elif seeds is not None:
            check_seeds(seeds, number)
        rules = layout_rules(self.config, len(prompt), max_tokens, allowed_lengths)
        processors = LogitsProcessorList([*(logits_processor or []), rules])
        criteria = StoppingCriteriaList([ClipFinished(self.config, prompt.shape[1], noise), *(stopping_criteria or [])])
        if noise is not None:
            processors.append(noise)
        if lookahead > 1 or settings.prompt_lookup_num_tokens or kwargs.get("assistant_model") is not None:
            settings.lookahead = lookahead
            settings.prompt_lookup_num_tokens = settings.prompt_lookup_num_tokens or (lookahead - 1 or None)
            kwargs["stops"] = criteria
        elif not has_beams and (number > 1 or scale > 1):
            may_leave = number > 1 and not (settings.return_dict_in_generate or is_compiled(settings))
            may_leave = may_leave and kwargs.get("past_key_values") is None
            kwargs["rows"] = ActiveRows(self.config, scale, guidance_interval, may_leave)
            processors.append(kwargs["rows"])
        # prompts have no padding
        output = super().generate(prompt, settings, processors, criteria, attention_mask=torch.ones_like(prompt), **kwargs)
        if has_beams:  # transformers fills with -1 where no id ends a sequence
            sequences = output.sequences if settings.return_dict_in_generate else output
            sequences.masked_fill_(sequences < 0, settings.pad_token_id)
        if scale > 1 and settings.return_dict_in_generate and output.past_key_values is not None:
            output.past_key_values.reorder_cache(torch.arange(number, device=prompt.device))
        return output

    def init_continuous_batching(self, *args, **kwargs):
        """Raise `NotImplementedError`: `generate_batch` and its kin leave out the rules of block sequences."""
        raise NotImplementedError("continuous batching leaves out the rules of block sequences; use generate")

    def _check_prompt(self, prompt, class_labels, condition_codes, mask) -> torch.LongTensor:
        if prompt is None:
            prompt = self.build_prompt(class_labels, condition_codes)
        elif class_labels is not None or condition_codes is not None:
            raise ValueError("give either a prompt or its condition, not both")
        if prompt.ndim != 2 or not len(prompt) or prompt.shape[1] < self.config.prompt_length:
            raise ValueError(f"a prompt must be (batch, {self.config.prompt_length} or more), got {tuple(prompt.shape)}")
        if mask is not None and (mask.shape != prompt.shape or not mask.all()):
            raise ValueError(f"prompts have no padding: attention_mask must be ones of shape {tuple(prompt.shape)}")
        return prompt

    def _check_guidance(self, scale: float, interval: int | None) -> None:
        check_number("guidance_scale", scale, 1, 1e6)
        if interval is not None:
            check_number("guidance_interval", interval, 0, math.inf, whole=True)
        if scale != 1 and not self.config.is_class_conditional:
            raise ValueError(f"guidance_scale={scale} needs a class-conditional generator: this has no null class")

    # What transformers' decoding loops call.

    def prepare_inputs_for_generation(self, input_ids, *args, rows: ActiveRows | None = None, stops=None, **kwargs):
        if rows is not None:
            input_ids = rows.select(input_ids, kwargs.get("past_key_values"))
            kwargs["position_ids"] = kwargs["position_ids"][:1]  # prompts have no padding
            if kwargs.get("attention_mask") is not None:
                kwargs["attention_mask"] = torch.ones_like(input_ids)
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        if "rows" in model_kwargs:
            model_kwargs["rows"].restore(outputs)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def _sample(
        self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=False, streamer=None, **kwargs
    ):
        cache, rows = kwargs.get("past_key_values"), kwargs.get("rows")
        own = {AdapTokARForCausalLM, AdapTokARModel, AdapTokARDecoderLayer, NoRotation}
        if not takes_loop(self, own, generation_config, stopping_criteria, cache, streamer, synced_gpus):
            return super()._sample(
                input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **kwargs
            )
        outputs = self._prefill(input_ids, generation_config, kwargs)
        if rows is not None:
            rows.restore(outputs)
        decoder = StaticDecoder(self, cache, stopping_criteria.max_length)
        return write_sequences(
            decoder, input_ids, outputs.logits[:, -1], logits_processor, stopping_criteria, rows, generation_config
        )

    def _get_logits_processor(self, generation_config, *args, **kwargs) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        processors.sort(key=lambda processor: isinstance(processor, SeededNoise) - isinstance(processor, ActiveRows))
        if processors and isinstance(processors[-1], SeededNoise):
            generation_config.do_sample = False  # the largest score is the sample
        return processors

    def _get_candidate_generator(self, generation_config, *args, model_kwargs, **kwargs):
        stops = model_kwargs.pop("stops", [])
        if getattr(generation_config, "lookahead", 1) > 1:
            candidates = BlockGuesses(self.config, generation_config.lookahead, generation_config.max_length)
        else:
            candidates = super()._get_candidate_generator(generation_config, *args, model_kwargs=model_kwargs, **kwargs)
        return CandidatesUntilStop(candidates, StoppingCriteriaList(stops))


__all__ = ["AdapTokARForCausalLM", "AdapTokARModel"]
