"""The router: causal over blocks, alone or in a batch, and with the sizes that EVATok states."""

import pytest
import torch
from transformers import AutoModel

from adaptok_hf import AdapTokRouterConfig, AdapTokRouterModel, BlockCache

SMALL = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


def make_router(**changes) -> AdapTokRouterModel:
    torch.manual_seed(0)
    router = AdapTokRouterModel(AdapTokRouterConfig(levels=[2, 4, 8], **SMALL | changes)).eval()
    torch.nn.init.normal_(router.head.weight)
    return router


def make_video(batch: int = 2, frames: int = 16) -> torch.Tensor:
    return torch.rand(batch, frames, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def blocks_router() -> AdapTokRouterModel:
    return make_router(head="blocks", price_conditioned=True)


def test_the_published_size():
    with torch.device("meta"):
        router = AdapTokRouterModel(AdapTokRouterConfig())
    assert 19.6e6 < sum(p.numel() for p in router.parameters()) < 20.2e6
    assert router.config.num_outputs == 625


def test_a_block_is_decided_without_later_ones(blocks_router):
    video = make_video().requires_grad_()
    logits = blocks_router(video, 0.01).logits
    assert logits.shape == (2, 4, 3)
    for block in range(4):
        gradient = torch.autograd.grad(logits[:, block].sum(), video, retain_graph=True)[0].abs().flatten(2).sum(2)
        assert (gradient[:, : 4 * block + 4] > 0).all() and (gradient[:, 4 * block + 4 :] == 0).all()
    torch.testing.assert_close(blocks_router(video[:, :8], 0.01).logits, logits[:, :2])


def test_a_stream_and_a_clip_alone_are_decided_alike(blocks_router):
    video, prices = make_video(), torch.tensor([0.01, 0.3])
    logits = blocks_router(video, prices).logits
    assert not torch.allclose(logits, blocks_router(video, 0.01).logits), "the price counts"
    for row in range(2):
        cache = BlockCache()
        stream = [blocks_router(block, prices[row], past_key_values=cache).logits for block in video[row, None].split(4, 1)]
        torch.testing.assert_close(torch.cat(stream, dim=1), logits[row, None])


def test_routes_and_their_prefix(blocks_router):
    counts = blocks_router.route(make_video(), 0.01)
    logits = blocks_router(make_video(), 0.01).logits
    assert torch.equal(counts, torch.tensor([2, 4, 8])[logits.argmax(-1)])
    assert (blocks_router.route(make_video(), 0.01, prefix=(8, 2))[:, :2] == torch.tensor([8, 2])).all()

    router = make_router()
    logits, order = router(make_video()).logits, torch.cartesian_prod(*[torch.tensor([2, 4, 8])] * 4)
    assert torch.equal(router.route(make_video()), order[logits.argmax(-1)])
    fits = (order[:, :2] == torch.tensor([8, 2])).all(1)
    expected = order[fits][logits[:, fits].argmax(-1)]
    assert torch.equal(router.route(make_video(), prefix=(8, 2)), expected)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        router.route(make_video(), prefix=(3,))


def test_level_losses_are_minus_log_probabilities(blocks_router):
    losses = blocks_router.level_losses(make_video(), 0.01)
    torch.testing.assert_close((-losses).exp().sum(-1), torch.ones(2, 4))
    levels = torch.tensor([2, 4, 8])
    assert torch.equal(levels[losses.argmin(-1)], blocks_router.route(make_video(), 0.01))

    router = make_router()
    losses, order = router.level_losses(make_video()), torch.cartesian_prod(*[torch.arange(3)] * 4)
    assert torch.equal(levels[losses.argmin(-1)], router.route(make_video()))
    logits = router(make_video()).logits.log_softmax(-1)
    for block in range(4):
        for level in range(3):
            best = logits[:, order[:, block] == level].amax(-1)
            torch.testing.assert_close(losses[:, block, level], -best)


def test_full_attention_is_a_plain_vision_transformer():
    router = make_router(attention_type="full", attention_bias=True)
    plain = torch.nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    plain = torch.nn.TransformerEncoder(plain, 2, router.norm, enable_nested_tensor=False).eval()
    for theirs, ours in zip(plain.layers, router.layers, strict=True):
        torch.nn.init.normal_(ours.attention.qkv.bias)
        theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = ours.attention.qkv.parameters()
        theirs.self_attn.out_proj, theirs.linear1, theirs.linear2 = ours.attention.proj, ours.mlp.fc1, ours.mlp.fc2
        theirs.norm1, theirs.norm2 = ours.norm1, ours.norm2
    patches = router.patch_embedding(make_video()) + router.patch_positions()
    outputs = plain(torch.cat([router.queries().expand(2, -1, -1), patches], dim=1))
    torch.testing.assert_close(router(make_video()).logits, router.head(outputs[:, 0]))


def test_labels_are_indices_or_probabilities(blocks_router):
    labels = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    by_index = blocks_router(make_video(), 0.01, labels=labels).loss
    soft = blocks_router(make_video(), 0.01, labels=torch.nn.functional.one_hot(labels, 3).float()).loss
    torch.testing.assert_close(by_index, soft)
    router = make_router()
    torch.testing.assert_close(
        router(make_video(), labels=torch.tensor([5, 80])).loss,
        router(make_video(), labels=torch.nn.functional.one_hot(torch.tensor([5, 80]), 81).float()).loss,
    )


def test_saved_and_loaded(blocks_router, tmp_path):
    blocks_router.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, AdapTokRouterModel) and loaded.config.levels == [2, 4, 8]
    assert torch.equal(loaded(make_video(), 0.01).logits, blocks_router(make_video(), 0.01).logits)


@pytest.mark.parametrize(
    ("head", "video", "price", "value"),
    [
        ("blocks", make_video(frames=6), 0.1, "6"),
        ("blocks", make_video(frames=20), 0.1, "20"),
        ("assignment", make_video(frames=8), None, "8"),
        ("blocks", make_video(), None, "None"),
        ("blocks", make_video(), 0.0, "0.0"),
        ("assignment", make_video(), 0.1, "0.1"),
        ("assignment", make_video()[..., :8], None, "8"),
        ("assignment", (make_video() * 255).byte(), None, "uint8"),
    ],
)
def test_what_does_not_fit_is_named(head, video, price, value):
    router = make_router(head=head, price_conditioned=head == "blocks")
    with pytest.raises(ValueError, match=value):
        router(video, price)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("levels", [4, 2]),
        ("levels", []),
        ("head", "none"),
        ("patch_size", 7),
        ("log_price_std", 0.0),
        ("attention_type", "none"),
    ],
)
def test_bad_configurations(entry, value):
    with pytest.raises(ValueError, match=str(value).replace("[", r"\[").replace("]", r"\]")):
        AdapTokRouterConfig(**{entry: value})
    with pytest.raises(ValueError, match="full.*blocks"):
        AdapTokRouterConfig(attention_type="full", head="blocks")
