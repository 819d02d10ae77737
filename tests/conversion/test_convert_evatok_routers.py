"""Conversion of EVATok's routers, from synthetic files in the layout that they are expected to have."""

import itertools
import json

import pytest
import torch
from builders.evatok_files import (
    SIZES,
    make_evatok_router,
    make_model,
    original_tensors,
    router_tensors,
    write_checkpoint,
)
from builders.video_files import write_mp4

from adaptok_hf import AdapTokPipeline, AdapTokRouterModel, convert_evatok
from adaptok_hf.conversion import evatok_files, evatok_routers
from adaptok_hf.conversion.evatok_names import NameMatcher
from adaptok_hf.conversion.evatok_routers import convert_router

LEVELS = [1, 2, 8]


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    monkeypatch.setattr(evatok_files, "SIZES", SIZES)
    monkeypatch.setattr(evatok_routers, "SIZES", SIZES)


@pytest.fixture(scope="module")
def router() -> AdapTokRouterModel:
    return make_evatok_router()


def convert(tmp_path, tensors, changes=None, **options):
    source, config = write_checkpoint(tmp_path, tensors, **(changes or {}))
    return convert_evatok(source, tmp_path / "out", config=config, **options)


def build(tmp_path, tensors, changes=None, **options):
    """The model alone, and what proves it; nothing is written."""
    _, config = write_checkpoint(tmp_path, tensors, **(changes or {}))
    model, _, prove = convert_router(tensors, NameMatcher("router", None, tmp_path / "names.json"), config, {}, **options)
    return model, prove


def load(tmp_path) -> AdapTokRouterModel:
    return AdapTokRouterModel.from_pretrained(tmp_path / "out" / "router")


def assert_same(converted, router, shift=0.5, scale=1.0):
    """The source takes `scale * (x - shift)`; ours takes x."""
    converted = converted if isinstance(converted, AdapTokRouterModel) else load(converted)
    video = torch.rand(2, 8, 3, 16, 16)
    torch.testing.assert_close(converted(video).logits, router(scale * (video - shift)).logits)


def test_expected_layout(router, tmp_path):
    report = convert(tmp_path, router_tensors(router))
    assert_same(tmp_path, router)
    for words in ("pos_embed: its first row belongs to cls_token", "first-slowest", "centered"):
        assert words in str(report)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["router"]


def test_joins_its_tokenizer(router, tmp_path):
    convert(tmp_path, original_tensors(make_model()), patch_order="thwc")
    source, config = write_checkpoint(tmp_path, router_tensors(router))
    config.write_text("model: {init_args: {patch_size: 8}}")  # the geometry is the tokenizer's
    convert_evatok(source, tmp_path / "out", config=config)
    assert_same(tmp_path, router)
    pipeline = AdapTokPipeline.from_pretrained(tmp_path / "out")
    video = torch.rand(8, 3, 16, 16)
    counts = pipeline.tokenize(video, allocation="router").token_counts
    assert counts.tolist() == pipeline.router.route(video[None]).tolist()
    with pytest.raises(ValueError, match="router exists"):
        convert(tmp_path, router_tensors(router))


def test_must_fit_the_tokenizer(tmp_path):
    convert(tmp_path, original_tensors(make_model()), patch_order="thwc")
    other = make_evatok_router(levels=[1, 4, 8])
    with pytest.raises(ValueError, match=r"\[4\].*\[1, 2, 8\]"):
        convert(tmp_path, router_tensors(other), {"spatial_token_num_choices": [1, 4, 8]})
    assert not (tmp_path / "out" / "router").exists()


def test_names_of_gigatok(tmp_path):
    """Fused and separate projections without bias, positions of patches only, another wrapper."""
    router = make_evatok_router(attention_bias=False)
    tensors = {}
    for name, tensor in router_tensors(router).items():
        name = name.replace("blocks", "vit.transformer").replace("attn.proj", "self_attn.out_proj")
        tensors[name.replace("mlp.fc", "linear").replace("norm.", "ln_post.")] = tensor
    tensors["positional_embedding"] = router.patch_positions.weight.transpose(0, 1).clone()
    tensors["cls_token"] = router.queries.weight.clone()
    del tensors["pos_embed"]
    tensors["vit.transformer.0.self_attn.in_proj_weight"] = tensors.pop("vit.transformer.0.attn.qkv.weight")
    for letter, part in zip("qkv", tensors.pop("vit.transformer.1.attn.qkv.weight").chunk(3), strict=True):
        tensors[f"vit.transformer.1.self_attn.{letter}_proj.weight"] = part
    assert_same(build(tmp_path, tensors)[0], router)


@pytest.mark.parametrize(("name", "shift", "scale"), [("unit", 0, 1), ("signed", 0.5, 2)])
def test_pixel_ranges(router, tmp_path, name, shift, scale):
    assert_same(build(tmp_path, router_tensors(router), pixel_range=name)[0], router, shift, scale)


@pytest.mark.parametrize("order", evatok_routers.CLASS_ORDERS)
def test_class_orders(router, tmp_path, order):
    """The source's classes, written out by loops."""
    converted, _ = build(tmp_path, router_tensors(router), class_order=order)
    levels = LEVELS[::-1] if "falling" in order else LEVELS
    source = []
    for slow in levels:
        for fast in levels:
            source.append((slow, fast) if order.startswith("first-slowest") else (fast, slow))
    video = torch.rand(1, 8, 3, 16, 16)
    theirs, ours = router(video - 0.5).logits[0], converted(video).logits[0]
    for place, assignment in enumerate(itertools.product(LEVELS, repeat=2)):
        torch.testing.assert_close(ours[place], theirs[source.index(assignment)])
    assert tuple(converted.route(video)[0].tolist()) == source[int(theirs.argmax())]


def test_patch_order_of_a_linear_map(router, tmp_path):
    tensors = router_tensors(router)
    weight = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = weight.movedim(1, 4).flatten(1)
    with pytest.raises(ValueError, match="patch_embed.proj.weight.*--patch-order"):
        convert(tmp_path, tensors)
    assert_same(build(tmp_path, tensors, patch_order="thwc")[0], router)


def test_a_renamed_tensor_is_found_by_its_shape_or_listed(router, tmp_path):
    tensors = router_tensors(router)
    tensors["chooser.weight"] = tensors.pop("head.weight")
    report = convert(tmp_path, tensors)
    assert_same(tmp_path, router)
    assert "head.weight = chooser.weight" in str(report)

    (tmp_path / "again").mkdir()
    for end in ("weight", "bias"):
        for name in ("blocks.0.norm2", "norm"):
            tensors[f"some_{name.replace('.', '_')}.{end}"] = tensors.pop(f"{name}.{end}")
    with pytest.raises(ValueError, match=r"layers\.0\.norm2\.weight \(12,\)") as error:
        convert(tmp_path / "again", tensors)
    assert "some_norm.bias (12,)" in str(error.value)
    path = tmp_path / "again" / "names.json"
    names = json.loads(path.read_text())
    assert set(names) == {f"{name}.{end}" for name in ("norm", "layers.0.norm2") for end in ("weight", "bias")}
    for ours in names:
        names[ours] = ("some_norm." if ours.startswith("norm") else "some_blocks_0_norm2.") + ours.rpartition(".")[2]
    tensors["a_buffer"] = torch.zeros(3)
    path.write_text(json.dumps(names))
    with pytest.raises(ValueError, match=r"(?s)a_buffer \(3,\).*unused"):
        convert(tmp_path / "again", tensors, names=path)
    path.write_text(json.dumps(names | {"unused": ["a_buffer"]}))
    convert(tmp_path / "again", tensors, names=path)
    assert_same(tmp_path / "again", router)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("blocks.1.mlp.fc2.bias"), ["layers.1.mlp.fc2.bias", "(12,)", "left over (0)"]),
        (lambda t: t.pop("blocks.1.attn.qkv.bias"), ["layers.1.attention.qkv.bias", "(36,)"]),
        (lambda t: t.pop("cls_token"), ["queries.weight (1, 1, 12)", "pos_embed is (1, 9, 12)"]),
        (
            lambda t: t.update({"head.weight": torch.rand(27, 12), "head.bias": torch.rand(27)}),
            ["head.weight is (27, 12)", "(9, 12)"],
        ),
        (lambda t: t.update({"pos_embed": torch.rand(1, 4, 12)}), ["pos_embed is (1, 4, 12)", "(1, 8, 12)"]),
        (lambda t: t.update({"patch_embed.proj.weight": torch.rand(12, 1024)}), ["(12, 1024)", "(12, 768)"]),
        (
            lambda t: t.update({"norm.weight": t["head.bias"], "head.bias": t["norm.weight"]}),
            ["norm.weight is (9,)", "head.bias is (12,)"],
        ),
        (lambda t: t.update({"blocks.0.ls1.gamma": torch.rand(12)}), ["blocks.0.ls1.gamma", "without a source (0)"]),
    ],
)
def test_missing_and_misshapen_tensors(router, tmp_path, change, words):
    tensors = router_tensors(router)
    change(tensors)
    with pytest.raises(ValueError) as error:
        convert(tmp_path, tensors)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_order": "alphabetical"}, "alphabetical.*|first-fastest"),
        ({"pixel_range": "bytes"}, "bytes"),
        ({"id_order": "codes", "mask_polarity": "sees"}, "mask_polarity, id_order.*router"),
        ({"part": "scorer"}, "scorer"),
    ],
)
def test_options_that_do_not_fit(router, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        convert(tmp_path, router_tensors(router), **options)


def test_configurations(router, tmp_path):
    source, path = write_checkpoint(tmp_path, router_tensors(router), use_rope=True)
    with pytest.raises(ValueError, match="use_rope"):
        convert_evatok(source, tmp_path / "out", config=path)
    source, path = write_checkpoint(tmp_path, router_tensors(router), encoder_size="huge")
    with pytest.raises(ValueError, match="huge"):
        convert_evatok(source, tmp_path / "out", config=path)
    router.config.save_pretrained(tmp_path)
    source, _ = write_checkpoint(tmp_path, router_tensors(router))
    convert_evatok(source, tmp_path / "out", config=tmp_path / "config.json")
    assert_same(tmp_path, router)
    make_evatok_router(attention_type="block_causal").config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="block_causal"):
        convert_evatok(source, tmp_path / "other", config=tmp_path / "config.json")
    make_model().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'evatok'.*'adaptok_router'"):
        convert_evatok(source, tmp_path / "other", config=tmp_path / "config.json")
    source, path = write_checkpoint(tmp_path, {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"evatok\.pt.*--part.*router"):
        convert_evatok(source, tmp_path / "other", config=path)


@pytest.mark.parametrize("order", evatok_routers.CLASS_ORDERS)
def test_verification(tmp_path, order):
    """A router that chooses 8, 1 and 1 tokens, whatever it sees. (Of two blocks it would say the same in two orders.)"""
    router = make_evatok_router(num_frames=12)
    levels = LEVELS[::-1] if "falling" in order else LEVELS
    first, others = levels.index(8), levels.index(1)
    torch.nn.init.zeros_(router.head.weight)
    router.head.bias.data = torch.zeros(27)
    digits = (first, others, others) if order.startswith("first-slowest") else (others, others, first)
    router.head.bias.data[9 * digits[0] + 3 * digits[1] + digits[2]] = 10
    video = write_mp4(tmp_path / "clip.mp4")
    wrong = next(other for other in evatok_routers.CLASS_ORDERS if other != order)
    with pytest.raises(ValueError, match=f"class_order='{wrong}'.*class_order='{order}'"):
        convert(tmp_path, router_tensors(router), {"frame_num": 12}, class_order=wrong, verify=video)
    assert not (tmp_path / "out").exists()
    (note,) = build(tmp_path, router_tensors(router), {"frame_num": 12}, class_order=order)[1](video)
    assert "clip: [8, 1, 1], of the frame: [8, 1, 1]" in note


def test_verification_of_a_router_that_has_no_order(tmp_path):
    router = make_evatok_router()
    for parameter in router.head.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="50.0%"):
        build(tmp_path, router_tensors(router))[1](write_mp4(tmp_path / "clip.mp4"))
