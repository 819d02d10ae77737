"""Routers for the tiny pipeline: 3 blocks of up to 6 tokens, 12 frames of 16x16 pixels."""

import torch

from adaptok_hf import AdapTokPipeline, AdapTokRouterConfig, AdapTokRouterModel


def make_router(levels: tuple[int, ...] = (1, 2, 4, 6), **changes) -> AdapTokRouterModel:
    """Build one whose choices differ from block to block and, if it takes a price, with the price."""
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes |= {"num_frames": 12, "head": "blocks", "price_conditioned": True, "log_price_mean": -6.0}
    router = AdapTokRouterModel(AdapTokRouterConfig(levels=levels, **sizes | changes)).eval()
    for layer in (router.head, router.patch_embedding.projection, router.layers[0].attention):
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    return router


def with_router(pipeline: AdapTokPipeline, router: AdapTokRouterModel | None) -> AdapTokPipeline:
    """Return the pipeline with this router, quiet."""
    routed = AdapTokPipeline(**pipeline.components | {"router": router})
    routed.set_progress_bar_config(disable=True)
    return routed
