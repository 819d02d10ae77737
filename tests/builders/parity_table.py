"""Our models against numbers computed with the original code: every stored tensor with what we compute for it.

The numbers lie in `tests/assets/parity`; a folder with all of them (also videos and weights that are too large to keep
here) is used as well where `ADAPTOK_PARITY_DIR` names one.
`PYTHONPATH=tests python -m builders.parity_table` prints the differences.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from builders.parity_generators import class_conditional, filtering, frame_prediction
from safetensors.torch import load_file
from torch.nn.functional import normalize, pad

from adaptok_hf.allocation import ipal
from adaptok_hf.conversion.convert import convert_checkpoint
from adaptok_hf.models.attention_masks import dense_mask, kept_tokens
from adaptok_hf.models.layers import latent_positions, patch_positions, sincos_1d, sincos_3d
from adaptok_hf.models.modeling_adaptok import AdapTokModel
from adaptok_hf.models.modeling_adaptok_ar import AdapTokARForCausalLM
from adaptok_hf.models.modeling_adaptok_prior import AdapTokPriorModel
from adaptok_hf.models.modeling_adaptok_scorer import AdapTokScorerModel
from adaptok_hf.models.token_layout import pack, unpack

COMMITTED = Path(__file__).parents[1] / "assets" / "parity"
FULL = Path(os.environ["ADAPTOK_PARITY_DIR"]) if "ADAPTOK_PARITY_DIR" in os.environ else None

PATTERNS = ("full", "min", "ragged", "uneven", "zeros")
# Our attention types, by the original's names.
TYPES = {
    "full_causal_type1": "block_causal",
    "full_causal_type2": "decoder",
    "full_causal_type3": "block_diagonal",
    "full_bi_attn": "full",
}

# name, ours, the original's, the largest difference allowed (0: must be equal)
Comparison = tuple[str, torch.Tensor, torch.Tensor, float]


class Golden(dict):
    """The tensors of a file; remembers which were looked at."""

    def __init__(self, file: Path):
        super().__init__(load_file(file))
        self.unread = set(self)

    def __getitem__(self, key: str) -> torch.Tensor:
        self.unread.discard(key)
        return super().__getitem__(key)


class Parity:
    """The models of a parity folder, converted, and its golden tensors."""

    def __init__(self, root: Path, scratch: Path):
        self.root = root
        self.scratch = scratch
        self.files: dict[str, Golden] = {}
        self.measured: set[str] = set()

    def golden(self, name: str) -> Golden:
        if name not in self.files:
            self.files[name] = Golden(self.root / f"{name}.safetensors")
        return self.files[name]

    @cached_property
    def folder(self) -> Path:
        """The tiny adaptive tokenizer with its scorer, and its prior where the folder has it."""
        source = self.root / "tokenizer_tiny"
        if not (source / "model.safetensors").exists():
            source = source / "checkpoint_easydict.pth"
        return convert_checkpoint(source, self.scratch / "adaptive").destination

    @cached_property
    def tokenizer(self) -> AdapTokModel:
        return AdapTokModel.from_pretrained(self.folder / "tokenizer").eval()

    @cached_property
    def scorer(self) -> AdapTokScorerModel:
        return AdapTokScorerModel.from_pretrained(self.folder / "scorer").eval()

    @cached_property
    def causal(self) -> AdapTokModel:
        folder = convert_checkpoint(self.root / "tokenizer_tiny_causal", self.scratch / "causal").destination
        return AdapTokModel.from_pretrained(folder / "tokenizer").eval()

    @cached_property
    def ar_model(self) -> AdapTokARForCausalLM:
        """Class-conditional; a part of the tokenizer's folder."""
        convert_checkpoint(self.root / "ar_tiny" / "checkpoint_easydict.pth", self.folder)
        return AdapTokARForCausalLM.from_pretrained(self.folder / "ar_model").eval()

    @cached_property
    def fp_model(self) -> AdapTokARForCausalLM:
        convert_checkpoint(self.root / "fp_tiny", self.folder)
        return AdapTokARForCausalLM.from_pretrained(self.folder / "fp_model").eval()

    def counts(self, pattern: str) -> torch.Tensor:
        return self.golden("tokenizer_tiny/decode")[f"{pattern}.latent_nums"]

    def decode(self, token_counts: torch.Tensor | None) -> torch.Tensor:
        """The golden quantised latents decoded; (batch, channels, frames, height, width) as the original has it."""
        quantized = blocks(self.golden("tokenizer_tiny/encode")["encoded"])
        decoded = self.tokenizer.decode(quantized=quantized, token_counts=token_counts)
        return decoded.pixel_values_videos.transpose(1, 2)


def blocks(tokens: torch.Tensor, num_blocks: int = 4) -> torch.Tensor:
    return tokens.unflatten(1, (num_blocks, -1))


def stored_clips(videos: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Of some videos only the first clips are committed."""
    return videos[: len(stored)]


def kept(token_counts: torch.Tensor) -> torch.Tensor:
    """(batch, tokens) uint8, as the original stores latent masks."""
    return kept_tokens(token_counts, 16).flatten(1).to(torch.uint8)


@contextmanager
def recorded_masks(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The masks (sequence, sequence) bool of what a layer is asked to attend to meanwhile."""
    masks = []

    def record(module, inputs):
        hidden_states, segments = inputs
        mask = torch.zeros(hidden_states.shape[1], hidden_states.shape[1], dtype=torch.bool)
        for segment in segments:
            for keys in segment.keys:
                mask[segment.queries, keys] = True
        masks.append(mask)

    handle = layer.register_forward_pre_hook(record)
    yield masks
    handle.remove()


def sorted_by_kind(latents_per_block: Sequence[int], latent_first: bool, patches: int = 16) -> torch.Tensor:
    """Where the latents and patches of the original's sequence lie in ours, block after block."""
    is_patch = torch.tensor([kind for count in latents_per_block for kind in [0] * count + [1] * patches])
    return torch.argsort(is_patch if latent_first else 1 - is_patch, stable=True)


def encode(parity: Parity) -> Iterator[Comparison]:
    model, golden = parity.tokenizer, parity.golden("tokenizer_tiny/encode")
    encoder, quantizer = model.encoder, model.quantizer
    video = golden["video"].transpose(1, 2)
    first_layer = []
    hook = encoder.layers[0].register_forward_hook(lambda *call: first_layer.append(call[-1]))
    output = model(video)
    hook.remove()
    latents = output.latents.flatten(1, 2)
    projected = quantizer.project_in(latents)
    yield "patch_tokens", encoder.patch_embedding(video) + encoder.patch_positions(), golden["patch_tokens"], 1e-5
    queries = encoder.latent_queries().expand(3, -1, -1)
    yield "queries", stored_clips(queries, golden["queries"]), golden["queries"], 0
    first_layer = first_layer[0][:, sorted_by_kind([16] * 4, latent_first=False)]
    yield "encoder_block0_out", first_layer, golden["encoder_block0_out"], 1e-4
    yield "z", latents, golden["z"], 1e-4
    yield "projected_z", projected, golden["projected_z"], 1e-4
    yield "normalized_z", quantizer.project(latents), golden["normalized_z"], 1e-5
    yield "codebook_normalized", quantizer.normalized_codebook(), golden["codebook_normalized"], 1e-6
    yield "indices", output.codes.flatten(1), golden["indices"], 0
    best, second = (normalize(projected, dim=-1) @ quantizer.normalized_codebook().T).topk(2).values.unbind(-1)
    yield "index_margin", best - second, golden["index_margin"], 1e-5
    yield "regularized_z", output.code_vectors.flatten(1, 2), golden["regularized_z"], 1e-6
    yield "encoded", output.quantized.flatten(1, 2), golden["encoded"], 1e-6
    for prefix, losses in (("", output), ("masked_", model(video, golden["masked_latent_nums"]))):
        weighted = 0.25 * losses.commitment_loss + losses.codebook_loss
        yield f"{prefix}loss_commit", losses.commitment_loss[None], golden[f"{prefix}loss_commit"], 1e-5
        yield f"{prefix}loss_codebook", losses.codebook_loss[None], golden[f"{prefix}loss_codebook"], 1e-5
        yield f"{prefix}loss_q", weighted[None], golden[f"{prefix}loss_q"], 1e-5


def decode(parity: Parity) -> Iterator[Comparison]:
    """Leaving dropped tokens out must give what the original gives leaving them out and what it gives masking them."""
    golden = parity.golden("tokenizer_tiny/decode")
    yield "nomask.video", stored_clips(parity.decode(None), golden["nomask.video"]), golden["nomask.video"], 1e-5
    for pattern in PATTERNS:
        counts = parity.counts(pattern)
        with recorded_masks(parity.tokenizer.decoder.layers[0]) as masks:
            video = parity.decode(counts)
        for way in ("with_drop", "with_mask"):
            if f"{pattern}.{way}" in golden:
                stored = golden[f"{pattern}.{way}"]
                yield f"{pattern}.{way}", stored_clips(video, stored), stored, 1e-5
        yield f"{pattern}.latent_mask", kept(counts), golden[f"{pattern}.latent_mask"], 0
        # The original keeps as many latents of each clip as the longest has, in their order.
        num_latents = int(counts.sum(1).max())
        index = torch.argsort(kept(counts) == 0, dim=1, stable=True)[:, :num_latents]
        present = torch.zeros_like(kept(counts)).scatter(1, index, 1)
        yield f"{pattern}.padded_mask", present, golden[f"{pattern}.padded_mask"], 0
        # Clips that keep different numbers lie one after the other in our sequence; the others share one mask.
        mask, start = torch.eye(num_latents + 64, dtype=torch.bool).repeat(len(counts), 1, 1), 0
        for clip, row in enumerate(counts.tolist()):
            order = start + sorted_by_kind(row, latent_first=True)
            slots = index[clip].sort().values
            places = torch.cat([kept(counts)[clip, slots].nonzero()[:, 0], num_latents + torch.arange(64)])
            mask[clip, places[:, None], places] = masks[0][order][:, order]
            start += len(order) if len(masks[0]) > len(order) else 0
        yield f"{pattern}.drop_attn_mask", mask.to(torch.uint8), golden[f"{pattern}.drop_attn_mask"], 0


def from_codes(parity: Parity) -> Iterator[Comparison]:
    model, golden = parity.tokenizer, parity.golden("tokenizer_tiny/decode_from_bottleneck")
    videos = parity.golden("tokenizer_tiny/decode")
    codes = blocks(golden["plain.indices"])
    expected = golden["plain.video"] if "plain.video" in golden else videos["nomask.video"]
    video = model.decode(codes).pixel_values_videos.transpose(1, 2)
    yield "plain.video", stored_clips(video, expected), expected, 1e-5
    for pattern in ("uneven", "zeros", "ragged", "full"):
        sequence = golden[f"{pattern}.sequence"].long()
        unpacked, counts = unpack(sequence, 4, 16, eob_token_id=128)
        yield f"{pattern}.latent_nums", counts, golden[f"{pattern}.latent_nums"], 0
        yield f"{pattern}.block_codes", unpacked.flatten(1), golden[f"{pattern}.block_codes"].long(), 0
        packed, mask = pack(codes, counts, eob_token_id=128)
        yield f"{pattern}.sequence", packed[mask], sequence[:, : packed.shape[1]][mask], 0
        video = model.decode(unpacked, counts).pixel_values_videos.transpose(1, 2)
        for source, name in ((golden, f"{pattern}.video"), (videos, f"{pattern}.with_drop")):
            if name in source:
                yield f"{pattern}.video", stored_clips(video, source[name]), source[name], 1e-5


def sequences(parity: Parity) -> Iterator[Comparison]:
    golden = parity.golden("tokenizer_tiny/sequence_ops")
    codes = blocks(parity.golden("tokenizer_tiny/encode")["indices"])
    for pattern in ("uneven", "zeros", "full"):
        counts = golden[f"{pattern}.latent_nums"]
        for name, ours in zip(("packed", "packed_mask"), pack(codes, counts, eob_token_id=128), strict=True):
            stored = golden[f"{pattern}.{name}"]
            yield f"{pattern}.{name}", pad(ours, (0, 68 - ours.shape[1])).to(stored.dtype), stored, 0
        each_block = [pack(codes[:, [block]], counts[:, [block]], eob_token_id=128) for block in range(4)]
        for name, parts in zip(("inserted", "inserted_mask"), zip(*each_block, strict=True), strict=True):
            stored = golden[f"{pattern}.{name}"]
            ours = torch.cat([pad(part, (0, 17 - part.shape[1])) for part in parts], dim=1)
            yield f"{pattern}.{name}", ours.to(stored.dtype), stored, 0


def scores(parity: Parity) -> Iterator[Comparison]:
    golden, encoded = parity.golden("tokenizer_tiny/scorer"), parity.golden("tokenizer_tiny/encode")
    latents, quantized = blocks(encoded["z"]), blocks(encoded["encoded"])

    def score(counts: torch.Tensor | None) -> torch.Tensor:
        return parity.scorer(latents, quantized, counts).scores

    yield "unmasked.scores", score(None).flatten(1), golden["unmasked.scores"], 1e-5
    for pattern in PATTERNS:
        counts = parity.counts(pattern)
        yield f"pattern_{pattern}.latent_mask", kept(counts), golden[f"pattern_{pattern}.latent_mask"], 0
        yield f"pattern_{pattern}.scores", score(counts).flatten(1), golden[f"pattern_{pattern}.scores"], 1e-5

    objectives = json.loads((parity.root / "tokenizer_tiny" / "meta.json").read_text())["encode_eval"]
    for budgets in ((8, 8, 8, 8), (12, 8, 6, 6)):
        name = "avg_" + "_".join(map(str, budgets))
        counts = torch.zeros(3, 4, dtype=torch.long)
        for block, budget in enumerate(budgets):
            counts[:, block] = 16
            table = score(counts)
            step = f"{name}.step{block}"
            yield f"{step}.latent_mask", kept(counts), golden[f"{step}.latent_mask"], 0
            yield f"{step}.scores", table.flatten(1), golden[f"{step}.scores"], 1e-5
            yield f"{step}.block_scores", table[:, block], golden[f"{step}.block_scores"], 1e-5
            chosen = ipal(table[:, block].numpy(), step=4, budget=budget, rounding="floor")
            counts[:, block] = torch.from_numpy(chosen)
            objective = table[:, block].gather(1, counts[:, [block]] // 4 - 1).double().sum()
            stored = torch.tensor(objectives[name][block]["objective"], dtype=torch.float64)
            yield f"{step}.objective", objective, stored, 1e-5
        yield f"{name}.latent_num", counts, golden[f"{name}.latent_num"], 0
        yield f"{name}.latent_mask", kept(counts), golden[f"{name}.latent_mask"], 0
        if f"{name}.decoded" in golden:
            stored = golden[f"{name}.decoded"]
            yield f"{name}.decoded", stored_clips(parity.decode(counts), stored), stored, 1e-5


def masks(parity: Parity) -> Iterator[Comparison]:
    golden = parity.golden("tokenizer_tiny/attention_masks")
    encoded = parity.golden("tokenizer_tiny/encode")
    tokenizer, scorer = parity.tokenizer, parity.scorer
    with recorded_masks(tokenizer.encoder.layers[0]) as encoder, recorded_masks(tokenizer.decoder.layers[0]) as decoder:
        parity.tokenizer(encoded["video"].transpose(1, 2))
    with recorded_masks(scorer.layers[0]) as scored:
        parity.scorer(blocks(encoded["z"]), blocks(encoded["encoded"]))
    orders = [sorted_by_kind([16] * 4, latent_first) for latent_first in (False, True)] + [torch.arange(64)]
    for name, (mask,), order in zip(("encoder", "decoder", "scorer"), (encoder, decoder, scored), orders, strict=True):
        yield name, mask[order][:, order].to(torch.uint8), golden[name], 0

    for prefix, patches, latents, num_blocks in (("", 16, 16, 4), ("small_3_2_3.", 3, 2, 3)):
        block = torch.arange(num_blocks)
        patch_block, latent_block = block.repeat_interleave(patches), block.repeat_interleave(latents)
        for original, ours in TYPES.items():
            for latent_first in (False, True):
                parts = [(patch_block, True), (latent_block, False)][:: -1 if latent_first else 1]
                order = torch.cat([part for part, _ in parts])
                is_patch = torch.cat([torch.full(part.shape, patch) for part, patch in parts])
                mask = dense_mask(ours, order, is_patch)
                name = f"{prefix}{original}.latent_first_{latent_first}"
                yield name, mask.to(torch.uint8), golden[name], 0


def causal(parity: Parity) -> Iterator[Comparison]:
    """The variant that is not adaptive."""
    model, golden = parity.causal, parity.golden("tokenizer_tiny_causal/io")
    output = model(golden["video"].transpose(1, 2))
    latents = output.latents.flatten(1, 2)
    projected = model.quantizer.project_in(latents)
    best, second = (normalize(projected, dim=-1) @ model.quantizer.normalized_codebook().T).topk(2).values.unbind(-1)
    yield "z", latents, golden["z"], 1e-4
    yield "projected_z", projected, golden["projected_z"], 1e-4
    yield "indices", output.codes.flatten(1), golden["indices"], 0
    yield "index_margin", best - second, golden["index_margin"], 1e-5
    yield "regularized_z", output.code_vectors.flatten(1, 2), golden["regularized_z"], 1e-6
    yield "encoded", output.quantized.flatten(1, 2), golden["encoded"], 1e-6
    decoded = model.decode(quantized=blocks(golden["encoded"])).pixel_values_videos.transpose(1, 2)
    yield "decoded", decoded, golden["decoded"], 1e-5
    from_video = output.pixel_values_videos.transpose(1, 2)
    yield "decoded (from the video)", from_video, golden["decoded"], 1e-5


def tables(parity: Parity) -> Iterator[Comparison]:
    golden = parity.golden("sincos/sincos")
    for dim, grid, frames in ((64, 4, 4), (96, 6, 2)):
        name = f"pe3d_dim{dim}_grid{grid}_frames{frames}"
        axes = torch.meshgrid(torch.arange(frames), torch.arange(grid), torch.arange(grid), indexing="ij")
        yield name, sincos_3d(*axes, dim).flatten(0, 2), golden[name], 1e-12
        yield f"{name}.float32", patch_positions(frames, grid, dim)[0], golden[f"{name}.float32"], 1e-6
    for dim, length, base in ((64, 32, 512), (64, 64, 10000), (96, 40, 10000)):
        name = f"pe1d_dim{dim}_len{length}_base{base}"
        yield name, sincos_1d(torch.arange(length), dim, base), golden[name], 1e-12
        yield f"{name}.float32", latent_positions(length, dim, base)[0], golden[f"{name}.float32"], 1e-6


def prior(parity: Parity) -> Iterator[Comparison]:
    """The prediction without a mask. Only where the prior's weights are."""
    model = AdapTokPriorModel.from_pretrained(parity.folder / "prior").eval()
    golden = parity.golden("prior_tiny/prior")
    predictions = model(golden["regularized_z"]).predictions
    yield "plain.ar_predict", predictions, golden["plain.ar_predict"], 1e-5
    yield "explicit_causal.ar_predict", predictions, golden["explicit_causal.ar_predict"], 1e-5


_SECTIONS = (encode, decode, from_codes, sequences, scores, masks, causal, tables, prior)
_SECTIONS += (class_conditional, frame_prediction, filtering)
SECTIONS = {section.__name__: section for section in _SECTIONS}


def measure(parity: Parity, section: str) -> Iterator[tuple[str, float, float]]:
    """(name, largest difference, bound) of each comparison; shapes and dtypes must be equal."""
    with torch.no_grad():
        for name, ours, stored, bound in SECTIONS[section](parity):
            if ours.shape != stored.shape or ours.dtype != stored.dtype:
                raise AssertionError(f"{name}: {ours.shape} {ours.dtype} against {stored.shape} {stored.dtype}")
            yield name, float((ours.double() - stored.double()).abs().max()), bound
    parity.measured.add(section)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        parity = Parity(FULL or COMMITTED, Path(scratch))
        print(f"{'section':12}{'tensors':48}{'max |difference|':>18}{'bound':>10}")
        for section in SECTIONS:
            if section == "prior" and FULL is None:
                continue
            for name, difference, bound in measure(parity, section):
                print(f"{section:12}{name:48}{difference:18.2g}{bound:10.0e}")


if __name__ == "__main__":
    main()
