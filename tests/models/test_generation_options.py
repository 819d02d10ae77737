"""`generate` with the habits of transformers users: options act or are raised by name, outputs are transformers' own."""

import pytest
import torch
from builders.generators import tiny, tiny_fp, transformers_loop
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    StoppingCriteria,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer

EVERYTHING = dict.fromkeys(
    ("return_dict_in_generate", "output_scores", "output_logits", "output_hidden_states", "output_attentions"), True
)
SEEDED = {"class_labels": [1], "seeds": [5]}
META = {"_from_model_config", "is_assistant", "transformers_version"}

# Options that change the sequence of `SEEDED`, or of greedy search.
ACT = {
    "bad_words_ids": [[3]],
    "begin_suppress_tokens": [3],
    "do_sample": False,
    "epsilon_cutoff": 0.9,
    "eos_token_id": 5,
    "eta_cutoff": 0.9,
    "guidance_scale": 4.0,
    "max_length": 4,
    "max_new_tokens": 4,
    "min_p": 1.0,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "repetition_penalty": 5.0,
    "sequence_bias": {(3,): -50.0},
    "suppress_tokens": [3],
    "temperature": 0.01,
    "top_h": 0.01,
    "top_k": 1,
    "top_p": 1e-6,
    "typical_p": 1e-6,
    "watermarking_config": WatermarkingConfig(bias=50.0),
    "max_time": 1e-9,
}
# Options that leave it as it is, and are accepted.
KEEP = {
    "cache_implementation": "static",
    "disable_compile": True,
    "pad_token_id": 0,
    "prompt_lookup_num_tokens": 3,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "use_cache": False,
}
# Options that are raised by name.
RAISE = {
    "assistant_confidence_threshold": 0.5,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "assistant_lookbehind": 5,
    "bos_token_id": 1,
    "cache_config": {"backend": "quanto"},
    "constraints": [1],
    "decoder_start_token_id": 1,
    "diversity_penalty": 0.5,
    "dola_layers": "low",
    "early_stopping": True,
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "exponential_decay_length_penalty": (2, 1.5),
    "force_words_ids": [[1]],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 1,
    "length_penalty": 2.0,
    "low_memory": True,
    "max_cache_len": 64,
    "max_matching_ngram_size": 3,
    "min_length": 3,
    "min_new_tokens": 3,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "num_beam_groups": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
    "penalty_alpha": 0.6,
    "prefill_chunk_size": 2,
    "speculation_type": "dflash",
    "stop_strings": "x",
    "target_lookbehind": 5,
    "token_healing": True,
    "use_mtp": True,
}
ELSEWHERE = {"compile_config", "continuous_batching_config", "num_return_sequences", "return_dict_in_generate"}


def test_every_field_of_the_generation_configuration_is_known():
    assert set(GenerationConfig().to_dict()) - META == {*ACT, *KEEP, *RAISE, *ELSEWHERE}


@pytest.fixture(scope="module")
def model():
    return tiny(latents_per_block=6)


@pytest.fixture(scope="module")
def written(model):
    return model.generate(**SEEDED)


@pytest.mark.parametrize("name", ACT)
@pytest.mark.parametrize("in_config", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_acts(model, written, name, in_config):
    options = {"generation_config": GenerationConfig(**{name: ACT[name]})} if in_config else {name: ACT[name]}
    given = SEEDED | ({"seeds": None, "do_sample": False} if name == "num_beams" else {})
    if name == "watermarking_config" and not in_config:
        options = {name: SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=2)}
    ids = model.generate(**given, **options)
    assert not torch.equal(ids, written)
    with transformers_loop():
        assert name == "max_time" or torch.equal(model.generate(**given, **options), ids)


@pytest.mark.parametrize("name", KEEP)
@pytest.mark.parametrize("in_config", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_accepts(model, written, name, in_config):
    options = {"generation_config": GenerationConfig(**{name: KEEP[name]})} if in_config else {name: KEEP[name]}
    assert torch.equal(model.generate(**SEEDED, **options), written)


@pytest.mark.parametrize("name", RAISE)
@pytest.mark.parametrize("in_config", [False, True])
def test_raises_by_name(model, name, in_config):
    options = {"generation_config": GenerationConfig(**{name: RAISE[name]})} if in_config else {name: RAISE[name]}
    with pytest.raises(ValueError, match=name):
        model.generate(**SEEDED, **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"custom_generate": "someone/somewhere"}, "custom_generate"),
        ({"negative_prompt_ids": torch.tensor([[26]])}, "negative_prompt_ids"),
        ({"inputs_embeds": torch.zeros(1, 1, 32)}, "inputs_embeds"),
        ({"cache_implementation": "paged"}, "paged"),
        ({"cache_implementation": "static", "use_cache": False}, "use_cache"),
        ({"penalty_alpha": 1.0, "top_k": 4}, "penalty_alpha"),
        ({"past_key_values": DynamicCache(), "guidance_scale": 2.0}, "past_key_values"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "eager"),
        ({"min_q": 0.1}, "min_q"),
    ],
)
def test_raises_by_name_outside_the_configuration(model, options, name):
    with pytest.raises(ValueError, match=name):
        model.generate(**SEEDED, **options)


def test_continuous_batching_is_named(model):
    with pytest.raises(NotImplementedError, match="continuous"):
        model.generate_batch(model.build_prompt([0]).tolist())


def test_several_sequences_of_a_prompt(model):
    given = {"class_labels": [1, 2], "max_tokens": [[2, 2, 2], [3, 3, 3]]}
    ids = model.generate(**given, seeds=range(6), num_return_sequences=3)
    repeated = {name: [entry for entry in value for _ in range(3)] for name, value in given.items()}
    assert torch.equal(ids, model.generate(**repeated, seeds=range(6)))


def test_a_prefix_function_and_a_processor_decide_but_never_break_the_rules(model):
    class OnlyClassTokens(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores + 1e3 * (torch.arange(scores.shape[1]) == 22) - torch.inf * (torch.arange(scores.shape[1]) == 20)

    ids = model.generate(**SEEDED, logits_processor=[OnlyClassTokens()])
    assert model.unpack_sequences(ids)[1].tolist() == [[6, 6, 6]]
    ids = model.generate(**SEEDED, prefix_allowed_tokens_fn=lambda row, ids: [7, 20])
    assert set(ids[0, 1:].tolist()) == {7, 20}


def test_beams_write_valid_sequences_with_scores(model):
    given = {"class_labels": [0, 1, 2], "do_sample": False, "max_tokens": 3, "num_beams": 4, "num_return_sequences": 2}
    outputs = dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), True)
    beams = model.generate(**given, length_penalty=0.0, **outputs)
    assert len(beams.sequences) == 6 and torch.equal(model.generate(**given, length_penalty=0.0), beams.sequences)
    assert model.unpack_sequences(beams.sequences)[1].sum(1).max() <= 3
    scores = model.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    torch.testing.assert_close(scores.sum(1), beams.sequences_scores, atol=1e-4, rtol=1e-4)


# --- outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({}, 1),
        ({"lookahead": 3}, 1),
        ({"prompt_lookup_num_tokens": 2}, 1),
        ({"class_labels": [0, 1, 2], "seeds": [1, 2, 3]}, 3),
        ({"class_labels": [0, 1, 2], "seeds": [1, 2, 3], "guidance_scale": 2.0}, 3),
        ({"class_labels": [0, 1, 2], "seeds": [1, 2, 3], "guidance_scale": 2.0, "guidance_interval": 2}, 3),
    ],
)
def test_outputs(given, rows):
    """Scores are those that tokens are sampled from, without our noise; logits are the model's own."""
    model, seen = tiny(attn_implementation="eager"), []

    class See(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(scores[-1] if scores else None)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    given = SEEDED | given | {"temperature": 0.5}
    output = model.generate(**given, **EVERYTHING, stopping_criteria=[See()])
    ids, length = output.sequences, output.sequences.shape[1] - 1
    assert torch.equal(ids, model.generate(**given))
    assert torch.equal(model.unpack_sequences(output)[1], model.unpack_sequences(ids)[1])
    assert len(output.scores) == len(output.logits) == len(output.hidden_states) == len(output.attentions) == length
    logits = model(ids[:, :-1]).logits.detach()
    torch.testing.assert_close(torch.stack(output.logits, 1), logits, atol=1e-4, rtol=1e-4)
    expected = logits
    if "guidance_scale" in given:
        null = torch.full((rows, 1), model.config.null_class_token_id)
        without = model(torch.cat([null, ids[:, 1:-1]], dim=1)).logits.detach()
        is_guided = torch.arange(length)[:, None] < given.get("guidance_interval", length) + 2
        expected = torch.where(is_guided, without + 2 * (logits - without), logits)
    scores = torch.stack(output.scores, 1)
    choice = (scores > -torch.inf) & ((scores > -torch.inf).sum(2, keepdim=True) > 1)
    torch.testing.assert_close(scores[choice], expected[choice] / 0.5, atol=1e-3, rtol=1e-4)
    transition = model.compute_transition_scores(ids, output.scores, normalize_logits=True)
    torch.testing.assert_close(transition, scores.log_softmax(2).gather(2, ids[:, 1:, None])[..., 0])
    assert output.past_key_values.layers[0].keys.shape[:3] == (rows, 4, length)
    assert output.hidden_states[-1][0].shape[0] == output.attentions[-1][0].shape[0] == rows
    last = [score for score in seen if score is not None][-1]
    assert torch.equal(last, output.scores[-1])


class Collect(BaseStreamer):
    def __init__(self):
        self.values, self.has_ended = [], False

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.has_ended = True


@pytest.mark.parametrize("given", [{}, {"guidance_scale": 2.0}, {"max_tokens": [[1, 0, 0], [4, 4, 4], [1, 0, 0]]}])
def test_a_streamer_gets_the_ids_of_rows_that_end_apart(given):
    model, streamer = tiny(), Collect()
    ids = model.generate(class_labels=[0, 1, 2], seeds=[1, 2, 3], streamer=streamer, **given)
    prompt, *tokens = streamer.values
    assert streamer.has_ended and torch.equal(torch.cat([prompt, torch.stack(tokens, 1)], dim=1), ids)


def test_a_streamer_gets_accepted_guesses():
    streamer = Collect()
    ids = tiny().generate(**SEEDED, lookahead=4, streamer=streamer)
    assert torch.equal(torch.cat([value.flatten() for value in streamer.values]), ids[0])


# --- guesses of others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.5, "max_tokens": 5},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"do_sample": False}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["own", "other", "llama", "lookup"])
def test_assistants_change_nothing_but_the_number_of_passes(model, sampling, kind):
    passes = []
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    help_of = {
        "own": lambda: {"assistant_model": tiny(latents_per_block=6)},
        "other": lambda: {"assistant_model": tiny(latents_per_block=6, **small)},
        "llama": lambda: {"assistant_model": LlamaForCausalLM(LlamaConfig(vocab_size=27, **small)).eval()},
        "lookup": lambda: {"prompt_lookup_num_tokens": 4},
    }[kind]()
    expected = model.generate(**SEEDED, **sampling)
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(model.generate(**SEEDED, **sampling, **help_of), expected)
    hook.remove()
    assert len(passes) < expected.shape[1] - (kind == "own")


def test_guesses_stop_where_the_caller_says(model):
    class Sixth(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((1,), input_ids.shape[1] == 6)

    expected = model.generate(**SEEDED)[:, :6]
    for guesses in ({"prompt_lookup_num_tokens": 5}, {"assistant_model": tiny(latents_per_block=6)}, {"lookahead": 5}):
        assert torch.equal(model.generate(**SEEDED, **guesses, stopping_criteria=[Sixth()]), expected)


def test_a_sequence_is_continued(model, written):
    """With the same seed as if it had never been interrupted."""
    assert torch.equal(model.generate(written[:, :7], seeds=[5]), written)
    fp = tiny_fp()
    ids = fp.generate(condition_codes=torch.zeros(1, 3, 4, dtype=torch.long), seeds=[1])
    assert torch.equal(fp.generate(ids[:, :9], seeds=[1], lookahead=3), ids)


def test_a_users_cache(model, written):
    cache = DynamicCache()
    model(written[:, :4], past_key_values=cache)
    assert torch.equal(model.generate(written[:, :5], seeds=[5], past_key_values=cache), written)
