"""Sequences that `generate` writes: always valid, independent of the rest of the batch, and only as long as needed."""

import math

import pytest
import torch
from builders.generators import tiny, tiny_fp
from torch.nn import functional
from transformers import LogitsProcessor, StoppingCriteria, TextStreamer

from adaptok_hf.models.generation_adaptok import BlockTokensLogitsProcessor, SeededNoise, gumbel_noise, noise_bits

INF = torch.inf


def check_valid(model, sequences, limits=None, total=None):
    """K blocks, 0..M codes each and at least 1 in the first, ids in range, `<EOB>` and nothing else after the end."""
    config = model.config
    eob, blocks = config.eob_token_id, config.num_generated_blocks
    assert sequences.shape[1] <= config.prompt_length + config.max_sequence_length
    for row, sequence in enumerate(sequences[:, config.prompt_length :].tolist()):
        assert all(0 <= token <= eob for token in sequence)
        ends = [place for place, token in enumerate(sequence) if token == eob]
        assert len(ends) >= blocks and set(sequence[ends[blocks - 1] :]) == {eob}
        counts = [end - start - 1 for start, end in zip([-1, *ends], ends[:blocks], strict=False)]
        assert counts[0] >= 1
        most = [config.latents_per_block] * blocks if limits is None else limits[row].tolist()
        assert all(count <= limit for count, limit in zip(counts, most, strict=True)), (counts, most)
        assert total is None or sum(counts) <= total


# --- property: every sequence is valid, and independent of the batch ---------------------------------------------


@pytest.mark.parametrize("trial", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 12))])
def test_sequences_are_valid_and_independent_of_the_batch(trial):
    draw = torch.Generator().manual_seed(trial)

    def choose(options):
        return options[int(torch.randint(len(options), (), generator=draw))]

    make = tiny if trial % 3 else tiny_fp
    scale = choose([0.05, 0.3, 1.0])
    model = make(
        position_embedding=choose(["rope", "absolute"]),
        num_blocks=choose([2, 3]) if make is tiny else 3,
        latents_per_block=choose([4, 6]),
        initializer_range=scale,
    )
    config = model.config
    # A random push towards <EOB> makes short and empty blocks.
    push = choose([-2.0, 0.0, 3.0, 8.0])
    model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_add(
            -1, torch.tensor([config.eob_token_id]), torch.full((*logits.shape[:-1], 1), push)
        )
    )
    if config.is_class_conditional:
        condition = {"class_labels": torch.randint(-1, 5, (8,), generator=draw)}
        guidance = choose([{}, {"guidance_scale": 2.5}, {"guidance_scale": 4.0, "guidance_interval": choose([0, 3])}])
    else:
        shape = (8, config.num_blocks, config.latents_per_block)
        condition, guidance = {"condition_codes": torch.randint(20, shape, generator=draw)}, {}
    limits, total, max_tokens = None, None, None
    kind = ["none", "total", "per block", "per clip"][trial % 4]
    if kind == "total":
        max_tokens = total = choose([1, 3, 6])
    elif kind != "none":
        shape = (config.num_generated_blocks,) if kind == "per block" else (8, config.num_generated_blocks)
        max_tokens = torch.randint(0, config.latents_per_block + 1, shape, generator=draw)
        max_tokens[..., 0].clamp_(min=1)
        limits = max_tokens.expand(8, -1)
    seeds = torch.randint(2**62, (8,), generator=draw)
    for sampling in (
        {"do_sample": False},
        {"do_sample": True, "seeds": seeds, "temperature": choose([0.7, 1.0, 1.5]), "top_k": choose([0, 5])},
        {"do_sample": True, "seeds": seeds, "top_p": choose([0.5, 0.9])},
    ):
        together = model.generate(**condition, **sampling, **guidance, max_tokens=max_tokens)
        check_valid(model, together, limits, total)
        for row in (0, 7):
            alone = {name: value[row : row + 1] for name, value in condition.items()}
            options = sampling | ({"seeds": seeds[row : row + 1]} if sampling["do_sample"] else {})
            row_limits = max_tokens[row : row + 1] if kind == "per clip" else max_tokens
            ids = model.generate(**alone, **options, **guidance, max_tokens=row_limits)
            width = min(ids.shape[1], together.shape[1])
            assert torch.equal(ids[0, :width], together[row, :width])
            assert (together[row, width:] == config.eob_token_id).all() and (ids[0, width:] == config.eob_token_id).all()


def test_training_mode_changes_nothing():
    model = tiny(class_dropout=0.9, residual_dropout=0.5)
    given = {"class_labels": [0, 1], "seeds": [0, 1], "max_tokens": 6}
    expected = model.generate(**given)
    model.train().lm_head.eval()
    assert torch.equal(model.generate(**given), expected)
    assert model.training and model.model.training and not model.lm_head.training


def test_conditioning_ids_are_never_written():
    """Not even where their logits are the largest by far; and not by transformers' own rules alone."""
    model = tiny()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 100 * (torch.arange(27) > 20))
    check_valid(model, model.generate(class_labels=[0, 1, 2], guidance_scale=2.0, seeds=[1, 2, 3]))
    plain = super(type(model), model).generate(model.build_prompt(class_labels=[0, 1]), max_new_tokens=10)
    assert plain[:, 1:].max() <= 20  # the saved suppress_tokens


def test_caps_are_exact():
    """With `<EOB>` made impossible but by force, each block and each sequence holds as much as its cap allows."""
    model = tiny()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits - 1e4 * (torch.arange(27) == 20))
    limits = torch.tensor([[4, 0, 2], [1, 3, 0]])
    for max_tokens, counts in (
        (limits, limits.tolist()),
        (7, [[4, 3, 0]] * 2),
        (1, [[1, 0, 0]] * 2),
        (12, [[4, 4, 4]] * 2),
        ([2, 2, 2], [[2, 2, 2]] * 2),
    ):
        sequences = model.generate(class_labels=[0, 1], max_tokens=max_tokens, seeds=[0, 1])
        assert model.unpack_sequences(sequences)[1].tolist() == counts


# --- cost --------------------------------------------------------------------------------------------------------


def test_finished_rows_leave_the_batch():
    """The model does not compute rows that are done; the others are as if these had never been there."""
    model = tiny(latents_per_block=8, num_blocks=2)
    rows = []
    model.model.register_forward_pre_hook(
        lambda module, inputs, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    limits = torch.tensor([[1, 0], [1, 0], [1, 1], [8, 8]])
    no_eob = model.lm_head.register_forward_hook(lambda module, inputs, logits: logits - 1e4 * (torch.arange(27) == 20))
    condition = {"class_labels": [0, 1, 2, 3], "max_tokens": limits}
    ids = model.generate(**condition, do_sample=False)
    assert torch.equal(model.unpack_sequences(ids)[1], limits)
    assert rows == [4] * 3 + [2] * 1 + [1] * 14  # 3, 3, 4 and 18 tokens
    rows.clear()
    assert torch.equal(model.generate(**condition, do_sample=False, cache_implementation="static"), ids)
    assert rows == [4] * 3 + [2] * 1 + [1] * 14
    rows.clear()
    guided = model.generate(**condition, do_sample=False, guidance_scale=3.0, guidance_interval=5)
    assert torch.equal(model.unpack_sequences(guided)[1], limits)
    assert rows == [8] * 3 + [4] * 1 + [2] * 3 + [1] * 11  # 7 guided tokens
    no_eob.remove()
    rows.clear()
    no_cache = model.generate(**condition, do_sample=False, use_cache=False)
    assert torch.equal(no_cache, model.generate(**condition, do_sample=False))


@pytest.mark.parametrize(
    ("positions", "guidance"),
    [("rope", {}), ("absolute", {"guidance_scale": 2.0}), ("rope", {"guidance_scale": 2.0, "guidance_interval": 4})],
)
def test_static_cache_is_equal(positions, guidance):
    model = tiny(position_embedding=positions, latents_per_block=7)
    given = {"class_labels": [0, 1, 2, 3, 4], "seeds": range(5), **guidance}
    assert torch.equal(model.generate(**given), model.generate(**given, cache_implementation="static"))


def test_a_users_processors_and_criteria_see_the_whole_batch():
    """In the order of the prompts, without the rows that guidance adds and with those that have left the model's batch."""
    model, seen = tiny(), []

    class Process(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids[:, 0].tolist())
            return scores

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids[:, 0].tolist())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    limits = torch.tensor([[1, 0, 0], [4, 4, 4], [1, 0, 0]])
    model.generate(
        class_labels=[0, 1, 2], guidance_scale=2.0, max_tokens=limits, seeds=[0, 1, 2],
        logits_processor=[Process()], stopping_criteria=[Stop()],
    )  # fmt: skip
    assert len(seen) > 12 and all(rows == [21, 22, 23] for rows in seen)


def test_stops_where_the_caller_says():
    model = tiny()

    class Third(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] == 4)

    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits - 1e4 * (torch.arange(27) == 20))
    whole = model.generate(class_labels=[0, 1], do_sample=False)
    stopped = model.generate(class_labels=[0, 1], do_sample=False, stopping_criteria=[Third()])
    assert torch.equal(stopped, whole[:, :4])
    assert torch.equal(model.generate(class_labels=[0, 1], do_sample=False, max_new_tokens=6), whole[:, :7])


# --- sampling ----------------------------------------------------------------------------------------------------


def test_noise_is_splitmix64():
    """Against the published generator in plain integers."""

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    assert mix((1234567 + golden) % 2**64) == 6457827717110365317  # the known first number of seed 1234567
    seeds = [0, 1, 2**63 - 1]
    drawn = noise_bits(torch.tensor(seeds), position=5, size=4)
    noise = gumbel_noise(torch.tensor(seeds), position=5, size=4)
    for row, seed in enumerate(seeds):
        stream = mix((mix(seed) + 6 * golden) % 2**64)
        bits = [mix((stream + (i + 1) * golden) % 2**64) >> 12 for i in range(4)]
        assert drawn[row].tolist() == bits
        expected = [-math.log(-math.log((b + 0.5) / 2**52)) for b in bits]
        assert noise[row].tolist() == pytest.approx(expected, abs=2e-6)
    assert (0.5 * 2.0**-52, (2**52 - 0.5) * 2.0**-52) == (2.0**-53, 1 - 2.0**-53)  # never 0, never 1


def test_samples_follow_the_softmax():
    """Chi-square over seeds and over positions; and rows, positions, neighboring seeds are independent."""
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -INF, -2.0, 0.0])
    probabilities = scores.softmax(0)
    kept = probabilities > 0
    for seeds, position in ((torch.arange(20000), 3), (torch.arange(20000) * 2**40 - 2**55, 900)):
        ids = torch.zeros(1, 1, dtype=torch.long).expand(20000, position)
        tokens = SeededNoise(seeds, 0)(ids, scores.expand(20000, -1)).argmax(1)
        counts = torch.bincount(tokens, minlength=8).double()
        assert counts[5] == 0
        expected = 20000 * probabilities.double()
        assert (((counts - expected) ** 2 / expected)[kept].sum()) < 22.5  # 6 degrees of freedom: 0.1%
    one_row = torch.cat([noise_bits(torch.tensor([7]), position, 8) for position in range(1500)])
    rows = noise_bits(torch.arange(20000), 0, 8)
    for bits in (one_row, rows):
        noise = (bits.double() + 0.5) / 2**52
        expected = len(noise) * probabilities.double()
        gumbel = scores - torch.log(-torch.log(noise))
        counts = torch.bincount(gumbel.argmax(1), minlength=8).double()
        assert (((counts - expected) ** 2 / expected)[kept].sum()) < 22.5
        for left, right in ((noise[1:, 0], noise[:-1, 0]), (noise[:, 0], noise[:, 1])):
            correlation = torch.corrcoef(torch.stack([left, right]))[0, 1]
            assert abs(correlation) < 4 / len(noise) ** 0.5
        assert abs(noise.mean() - 0.5) < 4 * (1 / 12 / noise.numel()) ** 0.5


def test_generate_samples_from_the_softmax():
    """The first token over many seeds, at temperature 1.5, against the model's own distribution."""
    model = tiny(num_blocks=1, latents_per_block=1, initializer_range=0.2)
    prompt = model.build_prompt(class_labels=[3])
    logits = model(prompt).logits[0, -1, :20].detach()
    expected = 4000 * (logits / 1.5).softmax(0).double()
    ids = model.generate(prompt.expand(4000, -1), seeds=torch.arange(4000), temperature=1.5)
    counts = torch.bincount(ids[:, 1], minlength=20).double()
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # 19 degrees of freedom: 0.1%


def test_seeds():
    model = tiny()
    given = {"class_labels": [1] * 6}
    first = model.generate(**given, seeds=[5, 6, 7, 5, 8, 9])
    assert torch.equal(first[0], first[3]) and len(first.unique(dim=0)) >= 4
    assert torch.equal(first, model.generate(**given, seeds=torch.tensor([5, 6, 7, 5, 8, 9])))
    torch.manual_seed(3)
    one = model.generate(**given)
    torch.manual_seed(3)
    assert torch.equal(one, model.generate(**given))
    other = model.generate(**given)
    assert one.shape != other.shape or not torch.equal(one, other)


# --- processors --------------------------------------------------------------------------------------------------


def test_block_rules_by_hand():
    """Codes 0..3, <EOB> 4, a class 5; prompt of one token; two blocks of at most 2."""
    rules = BlockTokensLogitsProcessor(1, 4, torch.tensor([[2, 2]]))
    scores = torch.arange(6.0)[None]
    codes, end, both = [0.0, 1, 2, 3, -INF, -INF], [-INF] * 4, [0.0, 1, 2, 3, 4, -INF]
    forced = [*end, 0.0, -INF]
    for sequence, expected in (
        ([], codes),
        ([1], both),
        ([1, 2], forced),
        ([1, 4], both),  # the second block may be empty
        ([1, 4, 0], both),
        ([1, 4, 0, 0], forced),
        ([1, 4, 4], forced),
        ([1, 2, 4, 4, 4], forced),
    ):
        given = scores.clone()
        assert rules(torch.tensor([[5, *sequence]]), given).tolist() == [expected], sequence
        assert torch.equal(given, scores)
    total = BlockTokensLogitsProcessor(1, 4, torch.tensor([[2, 2]]), total_limit=1)
    assert total(torch.tensor([[5, 1]]), scores).tolist() == [forced]
    assert total(torch.tensor([[5, 1, 4]]), scores).tolist() == [forced]
    rows = BlockTokensLogitsProcessor(1, 4, torch.tensor([[2, 0], [1, 2]]))
    both_rows = rows(torch.tensor([[5, 1], [5, 1]]), scores.expand(2, -1))
    assert both_rows.tolist() == [both, forced]
    # A block without room is closed, whatever another processor has done to the scores before.
    assert rows(torch.tensor([[5, 1, 4]] * 2), torch.full((2, 6), -INF))[0].tolist() == forced


def test_guidance_by_hand():
    """The first token is the largest of u + scale * (c - u), and after the interval that of c."""
    model = tiny(initializer_range=1.0)
    prompt, null = model.build_prompt(class_labels=[0, 1, 2, 3, 4]), model.config.null_class_token_id
    ids = model.generate(prompt, do_sample=False, guidance_scale=3.0, guidance_interval=1, max_tokens=[4, 4, 4])
    for length in range(1, 5):
        given = ids[:, :length]
        conditional = model(given).logits[:, -1, :21].detach()
        without = model(torch.cat([torch.full_like(prompt, null), given[:, 1:]], dim=1)).logits[:, -1, :21].detach()
        guided = without + 3 * (conditional - without) if length <= 3 else conditional
        if length == 1:
            guided[:, 20] = -INF
        assert torch.equal(ids[:, length], guided.argmax(1))


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"max_tokens": -1}, ["1..12", "-1"]),
        ({"max_tokens": 0}, ["1..12", "0"]),
        ({"max_tokens": 13}, ["1..12", "13"]),
        ({"max_tokens": 2.5}, ["max_tokens", "float32"]),
        ({"max_tokens": [1, 2]}, ["(3,)", "(2, 3)", "(2,)"]),
        ({"max_tokens": [1.0, 2.0, 3.0]}, ["max_tokens", "float32"]),
        ({"max_tokens": [0, 2, 3]}, ["1..4", "[0, 2, 3]"]),
        ({"max_tokens": [1, -2, 3]}, ["0..4", "[1, -2, 3]"]),
        ({"max_tokens": [1, 2, 5]}, ["0..4", "[1, 2, 5]"]),
        ({"budget": 2}, ["budget=2", "max_tokens"]),
        ({"guidance_scale": 0.5}, ["guidance_scale", "0.5"]),
        ({"guidance_scale": 2.0, "guidance_interval": -1}, ["guidance_interval", "-1"]),
        ({"seeds": [1, 2, 3]}, ["3 seeds", "2 sequences"]),
        ({"class_labels": [0, 5]}, ["0..4", "5"]),
        ({"condition_codes": torch.zeros(2, 3, 4, dtype=torch.long)}, ["class_labels"]),
        ({"inputs": torch.tensor([[21], [22]])}, ["prompt"]),
        ({"top_p": 1.5}, ["top_p", "1.5"]),
        ({"top_k": -3}, ["top_k", "-3"]),
        ({"temperature": 0.0}, ["temperature", "0"]),
        ({"num_beams": 2, "seeds": [1, 2]}, ["num_beams=2", "seeds"]),
        ({"num_beams": 2, "guidance_scale": 2.0}, ["num_beams=2", "guidance_scale=2.0"]),
        ({"num_beams": 2, "streamer": TextStreamer(None)}, ["num_beams=2", "streamer"]),
        ({"num_return_sequences": 3, "do_sample": False}, ["num_return_sequences", "3"]),
        ({"num_return_sequences": 3, "seeds": [1, 2]}, ["2 seeds", "6 sequences"]),
        ({"output_scores": True}, ["output_scores=True", "return_dict_in_generate=True"]),
        ({"prompt_lookup_num_tokens": 3}, ["prompt_lookup_num_tokens=3", "2 sequences"]),
        ({"class_labels": [0], "prompt_lookup_num_tokens": 3, "guidance_scale": 2.0}, ["lookup_num_tokens=3", "scale=2.0"]),
        ({"class_labels": [0], "prompt_lookup_num_tokens": 3, "lookahead": 4}, ["lookahead=4", "lookup_num_tokens=3"]),
        ({"lookahead": 0}, ["lookahead", "0"]),
        ({"lookahead": 4}, ["lookahead=4", "2 sequences"]),
        ({"class_labels": [0], "lookahead": 4, "guidance_scale": 2}, ["lookahead=4", "guidance_scale=2"]),
        ({"class_labels": [0], "lookahead": 4, "cache_implementation": "static"}, ["lookahead=4", "'static'"]),
        ({"class_labels": [0], "lookahead": 4, "use_cache": False}, ["lookahead=4", "use_cache=False"]),
        ({"attention_mask": torch.zeros(2, 1)}, ["attention_mask"]),
        ({"class_labels": []}, ["a prompt", "(0, 1)"]),
        ({"max_length": 1}, ["max_length=1"]),
        ({"min_q": 0.1}, ["min_q"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses(options, values):
    with pytest.raises(ValueError) as error:
        tiny().generate(**{"class_labels": [0, 1]} | options)
    for value in values:
        assert value in str(error.value)


@pytest.mark.parametrize(
    "option", [{"min_p": 1.0}, {"typical_p": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}, {"epsilon_cutoff": 0.99}]
)
def test_samplers_of_transformers_act(option):
    """Each of these leaves one token to sample from: with any seed the same sequence."""
    model = tiny(initializer_range=0.5)
    ids = model.generate(class_labels=[1] * 8, seeds=range(8), **option)
    assert len(ids.unique(dim=0)) == 1 < len(model.generate(class_labels=[1] * 8, seeds=range(8)).unique(dim=0))


def test_refuses_guidance_without_a_null_class_and_wrong_prompts():
    codes = torch.zeros(1, 3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="guidance_scale=2.0"):
        tiny_fp().generate(condition_codes=codes, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"a prompt must be \(batch, 7 or more\), got \(1, 3\)"):
        tiny_fp().generate(torch.zeros(1, 3, dtype=torch.long))


def test_given_blocks_come_back_whole():
    model = tiny_fp()
    codes = torch.randint(20, (3, 3, 4), generator=torch.Generator().manual_seed(4))
    sequences = model.generate(condition_codes=codes, seeds=[1, 2, 3])
    unpacked, counts = model.unpack_sequences(sequences, codes)
    assert torch.equal(unpacked[:, 0], codes[:, 0]) and counts[:, 0].tolist() == [4, 4, 4]
    assert counts[:, 1].min() >= 1  # the first generated block is not empty
    assert torch.equal(model.generate(model.build_prompt(condition_codes=codes), seeds=[1, 2, 3]), sequences)


# --- several tokens at a time --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "settings", "lookahead"),
    [
        (tiny, {"do_sample": False}, 5),
        (tiny, {"temperature": 0.5}, 2),
        (tiny, {"max_tokens": 6}, 20),
        (tiny, {"max_new_tokens": 5}, 4),
        (tiny_fp, {"do_sample": False}, 2),
        (tiny_fp, {"temperature": 0.5, "max_tokens": [2, 5]}, 5),
    ],
)
def test_lookahead_writes_the_same_in_fewer_passes(make, settings, lookahead):
    model = make(num_blocks=3, latents_per_block=6, initializer_range=0.3)
    if make is tiny:
        condition = {"class_labels": torch.tensor([1])}
    else:
        condition = {"condition_codes": torch.zeros(1, 3, 6, dtype=torch.long)}
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    for seed in range(2):
        expected = model.generate(**condition, seeds=[seed], **settings)
        one_by_one = len(passes)
        assert torch.equal(model.generate(**condition, seeds=[seed], lookahead=lookahead, **settings), expected)
        assert len(passes) - one_by_one <= one_by_one
        passes.clear()


def one_code_everywhere(model, code=3):
    """Make the model choose one code, whatever came before."""
    model.lm_head.register_forward_hook(
        lambda module, inputs, logits: functional.one_hot(torch.full(logits.shape[:-1], code), logits.shape[-1]).float()
    )


def test_right_guesses_save_passes():
    """Scores that know nothing: the second block is guessed from the first."""
    model = tiny(num_blocks=3, latents_per_block=6)
    passes, limit = [], model.config.latents_per_block
    model.model.register_forward_hook(lambda *_: passes.append(1))
    one_code_everywhere(model)
    sequence = model.generate(class_labels=[0], do_sample=False, lookahead=7)[0].tolist()
    assert sequence[1:] == ([3] * limit + [model.config.eob_token_id]) * 3
    assert len(passes) < 7  # of 21 tokens


def test_lookahead_feeds_the_guesses():
    """The first guess is code 0, the next are choices of the last pass, then the codes of the previous block."""
    model, fed = tiny(num_blocks=2, latents_per_block=2), []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0].tolist()))
    one_code_everywhere(model)
    model.generate(class_labels=[0], do_sample=False, lookahead=3)
    assert fed == [[[21, 0, 0]], [[3, 3, 20]], [[3, 3]]]  # the last pass ends with the sequence


def test_lookahead_stops_at_the_callers_token():
    model = tiny(latents_per_block=6)
    one_code_everywhere(model)

    class Fifth(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((1,), input_ids.shape[1] == 6)

    for lookahead in (1, 4):
        ids = model.generate(class_labels=[0], do_sample=False, lookahead=lookahead, stopping_criteria=[Fifth()])
        assert ids.tolist() == [[21, 3, 3, 3, 3, 3]]


def test_a_folder_without_generation_config_writes_whole_clips(tmp_path):
    model = tiny(latents_per_block=16)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    loaded = type(model).from_pretrained(tmp_path)
    given = {"class_labels": [0, 1], "do_sample": False}
    assert torch.equal(loaded.generate(**given), model.generate(**given))
    assert model.generate(**given).shape[1] > 30
