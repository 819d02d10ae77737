"""Pipelines whose generators have other layouts, and tokenizers that are not causal, such as LARP's."""

import logging

import pytest
import torch

from adaptok_hf import (
    AdapTokARConfig,
    AdapTokARForCausalLM,
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokVideoProcessor,
)
from adaptok_hf.conversion.originals import complete_parts
from adaptok_hf.training.ar import arguments as ar_arguments
from adaptok_hf.training.ar import model as ar_model

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "codebook_size": 50}
LENGTHS = {"num_blocks": 3, "latents_per_block": 6, "length_tokens": [2, 4, 6]}
PLAIN = {"num_blocks": 1, "latents_per_block": 18, "block_separators": False}


def generator(**settings) -> AdapTokARForCausalLM:
    torch.manual_seed(0)
    return AdapTokARForCausalLM(AdapTokARConfig(**SIZES | {"initializer_range": 0.3} | settings)).eval()


@pytest.fixture
def larp(tiny_config) -> AdapTokPipeline:
    attention = {"encoder_attention_type": "full", "decoder_attention_type": "full", "adaptive": False}
    torch.manual_seed(0)
    tokenizer = AdapTokModel(AdapTokConfig(**tiny_config.to_diff_dict() | attention)).eval()
    by_class = generator(num_classes=3, **PLAIN)
    by_frames = generator(num_classes=0, num_condition_codes=18, **PLAIN)
    pipeline = AdapTokPipeline(AdapTokVideoProcessor(16, 12, 4), tokenizer, None, by_class, by_frames)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_all_codes(larp, tmp_path):
    """18 codes are the tokenizer's 3 blocks of 6, also when the pipeline is loaded again."""
    output = larp.generate([0, 2], guidance_scale=1.5, generator=seeded())
    assert output.frames.shape == (2, 12, 16, 16, 3) and output.token_counts.tolist() == [[[6, 6, 6]]] * 2
    frames = torch.rand(5, 3, 16, 16, generator=seeded())
    predicted = larp.predict(frames, num_rollouts=2, generator=seeded())
    assert predicted.frames.shape == (1, 12 + 7, 16, 16, 3)
    larp.save_pretrained(tmp_path)
    loaded = AdapTokPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded.generate([0, 2], guidance_scale=1.5, generator=seeded()).codes, output.codes)
    with pytest.raises(ValueError, match="ar_model has num_blocks=1"):
        AdapTokPipeline(
            larp.video_processor, larp.tokenizer, None, generator(num_classes=3, **PLAIN | {"latents_per_block": 17})
        )


def test_what_is_not_causal_or_adaptive(larp, caplog):
    video = torch.rand(12, 3, 16, 16)
    with pytest.raises(ValueError, match="stream needs a causal tokenizer.*'full'"):
        larp.stream(video)
    with pytest.raises(ValueError, match="stream_decode needs a causal tokenizer.*'full'"):
        larp.stream_decode([])
    for options in ({"budget": 3}, {"price": 0.1}, {"budget": 3, "allocation": "search"}):
        with pytest.raises(ValueError, match=f"'{options.get('allocation', '')}.*not adaptive.*LARP"):
            larp.tokenize(video, **options)
    assert larp.tokenize(video).token_counts.tolist() == [[6, 6, 6]]
    logger = logging.getLogger("adaptok_hf.conversion.originals")
    logger.addHandler(caplog.handler)
    try:
        complete_parts("it", {"tokenizer": larp.tokenizer})
    finally:
        logger.removeHandler(caplog.handler)
    assert "not adaptive" in caplog.text and "stream" in caplog.text
    with pytest.raises(ValueError, match=r'hywang66/LARP-L-long-tokenizer", fp_model="it"'):
        complete_parts("it", {"fp_model": larp.fp_model})


@pytest.mark.parametrize("layout", [LENGTHS, PLAIN])
def test_clips_that_are_stopped_early(tiny_tokenizer, layout):
    """The rest is as short as it can be, and the callback sees each block that is complete."""
    model = generator(num_classes=3, **layout)
    pipeline = AdapTokPipeline(AdapTokVideoProcessor(16, 12, 4), tiny_tokenizer, None, model)
    pipeline.set_progress_bar_config(disable=True)
    seen = []

    def stop(pipeline, step, block, tensors):
        seen.append((step, block, tensors["sequences"].shape[1]))
        pipeline._interrupt = block == 1

    whole = pipeline.generate([0], generator=seeded(), temperature=0)
    output = pipeline.generate([0], generator=seeded(), temperature=0, callback_on_step_end=stop)
    assert [(step, block) for step, block, _ in seen] == [(0, 0), (1, 1)]
    first_blocks = output.token_counts[0, 0, :2]
    written = int(first_blocks.sum()) + (2 if layout is LENGTHS else 0)
    assert seen[-1][2] == 1 + written
    assert torch.equal(first_blocks, whole.token_counts[0, 0, :2])
    assert int(output.token_counts[0, 0, 2]) == (2 if layout is LENGTHS else 6) and not output.codes[0, 0, 2, :2].any()


def test_generators_that_are_trained():
    """Recipes name the layout; a converted LARP generator takes tokens that are divided into other blocks."""
    description = {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6, "class_names": []}
    entries = {"length_tokens": [2, 6], "num_classes": 0, "condition_counts": [6, 2]}
    sizes = {name: value for name, value in SIZES.items() if name != "codebook_size"}
    args = ar_arguments.Arguments(tokens=["t"], output_dir="o", steps=1, model=sizes | entries)
    assert not ar_model.is_class_conditional(args)
    assert ar_model.build_model(args, description, print).config.prompt_length == 8 + 2 + 1


def test_tokens_of_other_blocks(tmp_path):
    generator(num_classes=3, **PLAIN).save_pretrained(tmp_path)
    args = ar_arguments.Arguments(tokens=["t"], output_dir="o", steps=1, init_from=str(tmp_path))
    description = {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6, "class_names": []}
    assert ar_model.build_model(args, description, print).config.num_blocks == 3
    with pytest.raises(ValueError, match="num_blocks=1, the tokens 5"):
        ar_model.build_model(args, description | {"num_blocks": 5}, print)
