"""Generators that write length tokens before their blocks (EVATok), or codes and nothing else (LARP)."""

import pytest
import torch
from builders.generators import tiny
from torch.nn import functional

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM
from adaptok_hf.data import TokenCollator
from adaptok_hf.hub.export import export_repository
from adaptok_hf.models.generation_layouts_adaptok import CodesLogitsProcessor, LengthTokensLogitsProcessor

INF = torch.inf
LENGTHS = [2, 1, 4]  # the ids 20, 21, 22 of `tiny`
FRAMES = {"num_classes": 0, "condition_counts": [4, 1]}


def with_lengths(**changes) -> AdapTokARForCausalLM:
    return tiny(**{"length_tokens": LENGTHS} | changes)


def plain(**changes) -> AdapTokARForCausalLM:
    return tiny(block_separators=False, **changes)


def read_blocks(model: AdapTokARForCausalLM, sequences: torch.Tensor) -> list[list[int]]:
    """Return the counts of each row; fails for a sequence that is not valid."""
    config, counts = model.config, []
    for row in sequences[:, config.prompt_length :].tolist():
        counts.append([])
        for _ in range(config.num_generated_blocks):
            assert 20 <= row[0] <= 22
            count = LENGTHS[row[0] - 20]
            assert all(0 <= code < 20 for code in row[1 : count + 1]) and len(row) > count
            counts[-1].append(count)
            row = row[count + 1 :]
        assert set(row) <= {0}
    return counts


# --- ids and configuration ---------------------------------------------------------------------------------------


def test_ids():
    config = with_lengths().config
    assert (config.eob_token_id, config.num_sequence_ids, config.filler_token_id) == (None, 23, 0)
    assert (config.first_class_token_id, config.null_class_token_id, config.vocab_size) == (23, 28, 29)
    assert (config.prompt_length, config.max_sequence_length, config.max_position_embeddings) == (1, 15, 16)
    config = plain().config
    assert (config.eob_token_id, config.num_sequence_ids, config.first_class_token_id) == (None, 20, 20)
    assert (config.vocab_size, config.max_sequence_length) == (26, 12)
    config = with_lengths(**FRAMES).config
    assert (config.num_condition_codes, config.condition_separator_token_id, config.vocab_size) == (5, 23, 24)
    assert (config.prompt_length, config.num_generated_blocks) == (5 + 2 + 1, 3)
    config = with_lengths(**FRAMES, condition_length_tokens=False, condition_separator=False).config
    assert (config.prompt_length, config.condition_separator_token_id, config.conditioning_token_ids) == (5, None, [])


def test_the_configuration_is_saved(tmp_path):
    config = AdapTokARConfig(length_tokens=(32, 128, 512), num_classes=0, condition_counts=(512, 128))
    config.save_pretrained(tmp_path)
    loaded = AdapTokARConfig.from_pretrained(tmp_path)
    assert (loaded.length_tokens, loaded.condition_counts) == ([32, 128, 512], [512, 128])
    assert loaded.num_condition_codes == 640


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"length_tokens": []}, "length_tokens=.*1..4"),
        ({"length_tokens": [2, 5]}, r"\[2, 5\].*1..4"),
        ({"length_tokens": [0, 2]}, r"\[0, 2\].*1..4"),
        ({"length_tokens": [2, 2]}, r"\[2, 2\]"),
        ({"length_tokens": [2], "block_separators": False}, "length_tokens.*block_separators"),
        ({"length_tokens": [2], "num_classes": 0, "num_condition_codes": 4}, "num_condition_codes=4.*condition_counts"),
        ({"num_classes": 0, "condition_counts": [2]}, r"condition_counts=\[2\].*length_tokens=None"),
        ({"length_tokens": [2], "num_classes": 0, "condition_counts": [4]}, r"\[4\].*length_tokens=\[2\]"),
        ({"length_tokens": [2], "num_classes": 0, "condition_counts": [2] * 4}, "1..3"),
        (
            {"length_tokens": LENGTHS} | FRAMES | {"num_condition_codes": 4},
            "5.*num_condition_codes=4|num_condition_codes=4.*5",
        ),
        ({"length_tokens": LENGTHS, "condition_counts": [4, 1]}, "num_classes and num_condition_codes"),
        ({"condition_separator": False}, "condition_separator=False.*num_classes=5"),
        ({"condition_length_tokens": False}, "condition_length_tokens=False.*condition_counts"),
        ({"length_tokens": [2], "num_classes": 0, "condition_counts": [2], "start_block": 2}, "start_block=2.*1 blocks"),
    ],
)
def test_impossible_configurations(changes, values):
    with pytest.raises(ValueError, match=values):
        tiny(**changes)


@pytest.mark.parametrize(
    ("size", "layers", "parameters"), [("base", 12, 99.2e6), ("large", 24, 327.3e6), ("large_plus", 30, 633.3e6)]
)
def test_published_sizes(size, layers, parameters):
    """EVATok's 99M, 327M and 633M; one layer is built, and counted as often as there are layers."""
    options = {"length_tokens": [32, 64, 128, 256, 512], "position_embedding": "absolute"}
    config = getattr(AdapTokARConfig, size)(**options)
    assert config.num_hidden_layers == layers
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = AdapTokARForCausalLM(config)
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert model.num_parameters() + (layers - 1) * layer == pytest.approx(parameters, abs=0.2e6)
    assert len(model.model.positions.weight[0]) == 4 * 513


# --- rules -------------------------------------------------------------------------------------------------------


def test_rules_of_length_tokens_by_hand():
    """Codes 0..3, the ids 4 and 5 for 1 and 2 codes, a class 6; prompt of one token; two blocks."""
    everything = torch.ones(1, 2, 2, dtype=torch.bool)
    rules = LengthTokensLogitsProcessor(1, 4, [1, 2], everything)
    scores = torch.arange(7.0)[None]
    codes, lengths, done = [0.0, 1, 2, 3] + [-INF] * 3, [-INF] * 4 + [4.0, 5, -INF], [0.0] + [-INF] * 6
    for sequence, expected in (
        ([], lengths),
        ([4], codes),
        ([4, 0], lengths),
        ([5, 0], codes),
        ([5, 0, 3], lengths),
        ([5, 0, 3, 4], codes),
        ([4, 0, 4, 1], done),
        ([4, 0, 4, 1, 0, 0], done),
    ):
        given = scores.clone()
        assert rules(torch.tensor([[6, *sequence]]), given).tolist() == [expected], sequence
        assert torch.equal(given, scores)
    short, long = [-INF] * 4 + [4.0, -INF, -INF], [-INF] * 4 + [-INF, 5.0, -INF]
    total = LengthTokensLogitsProcessor(1, 4, [1, 2], everything, total_limit=3)
    assert total(torch.tensor([[6]]), scores).tolist() == [lengths]
    assert total(torch.tensor([[6, 5, 0, 0]]), scores).tolist() == [short]
    assert LengthTokensLogitsProcessor(1, 4, [1, 2], everything, 2)(torch.tensor([[6]]), scores).tolist() == [short]
    rows = torch.tensor([[[True, False], [False, True]], [[True, True], [True, True]]])
    rules = LengthTokensLogitsProcessor(1, 4, [1, 2], rows)
    assert rules(torch.tensor([[6], [6]]), scores.expand(2, -1)).tolist() == [short, lengths]
    assert rules(torch.tensor([[6, 4, 0]] * 2), scores.expand(2, -1)).tolist() == [long, lengths]
    # What is left is written, whatever another processor has done to the scores before.
    assert rules(torch.tensor([[6, 4, 0]] * 2), torch.full((2, 7), -INF))[0].tolist() == [-INF] * 5 + [0.0, -INF]


def test_rules_of_codes_by_hand():
    scores = torch.arange(6.0)[None]
    assert CodesLogitsProcessor(4)(torch.tensor([[5, 0]]), scores).tolist() == [[0.0, 1, 2, 3, -INF, -INF]]


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", [1, 3, *(pytest.param(trial, marks=pytest.mark.slow) for trial in (0, 2))])
def test_sequences_are_valid_and_independent_of_the_batch(trial):
    draw = torch.Generator().manual_seed(trial)
    frames = FRAMES if trial == 3 else {}
    model = with_lengths(
        position_embedding=["rope", "absolute"][trial % 2], initializer_range=[0.3, 1.0][trial // 2], **frames
    )
    # pushes towards ids that are forbidden, and towards each length
    push = torch.randn(model.config.vocab_size, generator=draw) * 4
    push[model.config.num_sequence_ids :] += 20
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + push)
    if frames:
        condition, guidance = {"condition_codes": torch.randint(20, (6, 3, 4), generator=draw)}, {}
    else:
        condition = {"class_labels": torch.randint(-1, 5, (6,), generator=draw)}
        guidance = [{}, {"guidance_scale": 2.5}, {"guidance_scale": 4.0, "guidance_interval": 3}][trial]
    seeds = torch.randint(2**62, (6,), generator=draw)
    limits = torch.randint(1, 5, (6, 3), generator=draw)
    caps = {} if frames else [{}, {"max_tokens": 6}, {"max_tokens": limits}][trial]
    for sampling in (
        {"do_sample": False},
        {"seeds": seeds, "temperature": 1.5, "top_k": 2},
        {"seeds": seeds, "top_p": 0.5},
    ):
        together = model.generate(**condition, **sampling, **guidance, **caps)
        counts = read_blocks(model, together)
        assert model.unpack_sequences(together)[1].tolist() == counts
        if frames:
            assert [row[:2] for row in counts] == [[4, 1]] * 6
        elif trial == 1:
            assert max(map(sum, counts)) <= 6
        elif trial == 2:
            assert (torch.tensor(counts) <= limits).all()
        alone = {
            name: value[-1:] for name, value in (condition | sampling | caps).items() if isinstance(value, torch.Tensor)
        }
        ids = model.generate(**condition | sampling | caps | guidance | alone)
        assert torch.equal(functional.pad(ids, (0, together.shape[1] - ids.shape[1])), together[-1:])


@pytest.mark.parametrize("make", [with_lengths, pytest.param(plain, marks=pytest.mark.slow)])
def test_every_way_of_decoding_writes_the_same(make):
    model = make(initializer_range=0.5)
    expected = model.generate(class_labels=[3], do_sample=False)
    for way in ({"lookahead": 3}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert torch.equal(model.generate(class_labels=[3], do_sample=False, **way), expected), way
    assert torch.equal(model.generate(expected[:, :6], do_sample=False), expected)
    beams = model.generate(class_labels=[3, 1], do_sample=False, num_beams=2)
    assert len(model.unpack_sequences(beams)[0]) == 2


def test_forbidden_ids_have_no_probability_under_guidance():
    """Before temperature, top-k and top-p: what these keep is allowed."""
    model = with_lengths()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 50 * (torch.arange(29) > 21))
    options = {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 3, "top_p": 0.9}
    output = model.generate(class_labels=[0, 1], seeds=[0, 1], output_scores=True, return_dict_in_generate=True, **options)
    read_blocks(model, output.sequences)
    first, second = output.scores[0], output.scores[1]
    assert first.isfinite().nonzero()[:, 1].tolist() == [22, 22]  # of the lengths, by far the largest
    assert (first[:, 23:] == -INF).all() and (second[:, 20:] == -INF).all() and second[:, :20].isfinite().any(1).all()


def test_lengths_are_forced():
    model = with_lengths()
    for allowed, counts in (([2], [2, 2, 2]), ([[4], [1], [2]], [4, 1, 2]), (torch.tensor([1]), [1, 1, 1])):
        ids = model.generate(class_labels=[0, 1], seeds=[0, 1], allowed_lengths=allowed)
        assert model.unpack_sequences(ids)[1].tolist() == [counts] * 2
    longer = functional.pad(torch.tensor([2e4, 1e4, 4e4]), (20, 6))
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + longer)
    for caps, counts in (({"max_tokens": 7}, [4, 2, 1]), ({"max_tokens": [1, 3, 4]}, [1, 2, 4]), ({}, [4, 4, 4])):
        ids = model.generate(class_labels=[0, 1], seeds=[0, 1], **caps)
        assert model.unpack_sequences(ids)[1].tolist() == [counts] * 2
    ids = model.generate(class_labels=[0], seeds=[0], max_tokens=7, allowed_lengths=[[1, 2], [4], [1]])
    assert model.unpack_sequences(ids)[1].tolist() == [[2, 4, 1]]


def test_all_codes_are_written():
    model = plain()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 100 * (torch.arange(26) > 19))
    ids = model.generate(class_labels=[0, 1], seeds=[0, 1], guidance_scale=2.0)
    assert ids.shape == (2, 13) and ids[:, 1:].max() < 20
    codes, counts = model.unpack_sequences(ids)
    assert torch.equal(codes.flatten(1), ids[:, 1:]) and counts.tolist() == [[4, 4, 4]] * 2
    model = plain(num_classes=0, num_condition_codes=12)
    condition = torch.randint(20, (2, 3, 4))
    ids = model.generate(condition_codes=condition, seeds=[0, 1])
    assert ids.shape == (2, 25) and torch.equal(ids[:, :12], condition.flatten(1)) and (ids[:, 12] == 20).all()


@pytest.mark.parametrize(
    ("make", "options", "values"),
    [
        (with_lengths, {"max_tokens": 2}, "max_tokens=2.*3"),
        (with_lengths, {"max_tokens": [1, 0, 4]}, r"max_tokens=\[1, 0, 4\].*block 1"),
        (with_lengths, {"allowed_lengths": [3]}, r"\[3\].*\[2, 1, 4\]"),
        (with_lengths, {"allowed_lengths": []}, r"allowed_lengths=\[\].*block 0"),
        (with_lengths, {"allowed_lengths": [[2], [2]]}, "allowed_lengths.*3 blocks"),
        (with_lengths, {"allowed_lengths": [[2], 2, [2]]}, "allowed_lengths.*3 blocks"),
        (with_lengths, {"allowed_lengths": [4], "max_tokens": 11}, "11.*12"),
        (plain, {"max_tokens": 12}, "max_tokens=12.*12 codes"),
        (plain, {"allowed_lengths": [4]}, r"allowed_lengths=\[4\].*length_tokens"),
        (tiny, {"allowed_lengths": [4]}, r"allowed_lengths=\[4\].*length_tokens"),
    ],
)
def test_what_cannot_be_written(make, options, values):
    with pytest.raises(ValueError, match=values):
        make().generate(class_labels=[0], **options)


def test_the_fixed_prefix_is_part_of_the_rules():
    model = with_lengths(**FRAMES)
    with pytest.raises(ValueError, match=r"allowed_lengths=\[2\].*condition_counts=\[4, 1\].*block 0"):
        model.generate(condition_codes=torch.zeros(1, 3, 4, dtype=torch.long), allowed_lengths=[2])


# --- conditions, training ----------------------------------------------------------------------------------------


def test_conditions_with_lengths():
    codes = torch.arange(12).view(1, 3, 4)
    prompts = {
        (True, True): [22, 0, 1, 2, 3, 21, 4, 23],
        (True, False): [22, 0, 1, 2, 3, 21, 4],
        (False, True): [0, 1, 2, 3, 4, 23],
        (False, False): [0, 1, 2, 3, 4],
    }
    for (lengths, separator), expected in prompts.items():
        model = with_lengths(**FRAMES, condition_length_tokens=lengths, condition_separator=separator)
        assert model.build_prompt(condition_codes=codes).tolist() == [expected]
    unused = codes[:, :2].clone()
    unused[0, 1, 1:] = -1  # nobody looks at what is dropped, and later blocks may be missing
    assert model.build_prompt(condition_codes=unused).tolist() == [[0, 1, 2, 3, 4]]
    for wrong, values in ((codes[:, :1], "2..3, 4"), (codes + 9, "0..19, got 0..22|0..19")):
        wrong = wrong.clone()
        wrong[0, 0, 0] = 20 if wrong.shape[1] > 1 else 0
        with pytest.raises(ValueError, match=values):
            model.build_prompt(condition_codes=wrong)
    start = with_lengths(**FRAMES, start_block=2)
    ids = start.generate(condition_codes=codes, seeds=[0])
    unpacked, counts = start.unpack_sequences(ids, codes)
    assert counts[0, :2].tolist() == [4, 1] and torch.equal(unpacked[0, 0], codes[0, 0]) and unpacked.shape == (1, 3, 4)


def test_loss_over_codes_and_lengths():
    for make, counts, size in ((with_lengths, [[4, 1, 2], [1, 1, 1]], 23), (plain, [[4, 4, 4]] * 2, 20)):
        model, counts = make(), torch.tensor(counts)
        codes = torch.randint(20, (2, 3, 4), generator=torch.Generator().manual_seed(0))
        inputs = model.build_inputs(codes, counts, class_labels=[0, -1])
        rows = []
        for row in range(2):
            alone = model.build_inputs(codes[[row]], counts[[row]], class_labels=[[0], [-1]][row])
            ids = alone["input_ids"]
            logits = model(ids).logits[0, :-1, :size]
            rows.append(functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
            tokens = int(counts[row].sum()) + (3 if size == 23 else 0)
            assert len(rows[-1]) == tokens and torch.equal(alone["labels"][0, 1:], ids[0, 1:])
        torch.testing.assert_close(model(**inputs).loss, torch.cat(rows).mean())
        rows = [{"codes": codes[i].numpy(), "token_counts": counts[i].numpy(), "label": [0, -1][i]} for i in range(2)]
        collated = TokenCollator(model.config)(rows)
        assert all(torch.equal(collated[name], value) for name, value in inputs.items())


def test_clips_that_do_not_fit_the_layout():
    codes, full = torch.zeros(1, 3, 4, dtype=torch.long), torch.full((1, 3), 4)
    wrong = torch.tensor([[4, 3, 4]])
    with pytest.raises(ValueError, match=r"has 3.*length_tokens=\[2, 1, 4\]"):
        with_lengths().build_inputs(codes, wrong, class_labels=[0])
    with pytest.raises(ValueError, match="has 3.*all 4"):
        plain().build_inputs(codes, wrong, class_labels=[0])
    with pytest.raises(ValueError, match=r"\[4, 4\].*condition_counts=\[4, 1\]"):
        with_lengths(**FRAMES).build_inputs(codes, full, condition_codes=codes)


def test_other_classes_keep_the_length_tokens():
    model = with_lengths()
    before = model.model.embed_tokens.weight[:23].clone()
    model.replace_classes(["one", "two"])
    assert torch.equal(model.model.embed_tokens.weight[:23], before)
    assert (model.config.first_class_token_id, model.config.vocab_size) == (23, 26)
    read_blocks(model, model.generate(class_labels=[0, 1], seeds=[0, 1]))


def test_blocks_of_a_tokenizer():
    """Codes without separators are as many blocks as their tokenizer has; other layouts have blocks of their own."""
    config = plain().config
    config.take_blocks(2, 6)
    assert (config.num_blocks, config.latents_per_block) == (2, 6)
    config.take_blocks(2, 5)
    assert (config.num_blocks, config.latents_per_block) == (2, 6)
    for model in (tiny(), with_lengths()):
        model.config.take_blocks(2, 6)
        assert (model.config.num_blocks, model.config.latents_per_block) == (3, 4)


# --- as a stock Llama --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [with_lengths, pytest.param(plain, marks=pytest.mark.slow)])
def test_stock_llama(make, tmp_path):
    """The same weights without code write the same lengths first, and never what is conditioned on."""
    from transformers import LlamaForCausalLM

    make().save_pretrained(tmp_path / "ours")
    export_repository(tmp_path / "ours", tmp_path / "llama", plain_llama=True)
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    ours = AdapTokARForCausalLM.from_pretrained(tmp_path / "ours")
    ids = ours.generate(class_labels=[0, 1], do_sample=False)
    torch.testing.assert_close(llama(ids).logits, ours(ids).logits)
    written = llama.generate(ids[:, :1], attention_mask=torch.ones_like(ids[:, :1]), do_sample=False)
    assert torch.equal(written[:, 1], ids[:, 1]) and written.max() < 29
    assert written.shape[1] == 1 + ours.config.max_sequence_length
    assert written[:, 1:].max() < ours.config.num_sequence_ids
    if make is plain:
        assert torch.equal(written, ids)
    else:
        assert (written[:, 1] >= 20).all()
