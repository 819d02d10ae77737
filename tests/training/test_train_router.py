"""Labels for routers and their training: runs as users start them."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from builders.scorer_recipe import make_tokenizer
from builders.script_runs import metrics, run_script
from builders.video_files import make_frames, write_mp4
from safetensors.torch import load_file
from transformers import AutoModel

from adaptok_hf import (
    AdapTokModel,
    AdapTokPipeline,
    AdapTokRouterConfig,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)
from adaptok_hf.allocation import AssignmentTree, proxy_reward
from adaptok_hf.training.router.arguments import Arguments as RouterArguments
from adaptok_hf.training.router.assignment_labels import Arguments as LabelArguments
from adaptok_hf.training.router.assignment_labels import LabelledVideos, read_labels, write_labels
from adaptok_hf.training.router.targets import ClipCosts
from adaptok_hf.training.router.trainer import Labels
from adaptok_hf.training.router.validation import (
    cheapest_schedule,
    choice_percentile,
    schedule_percentiles,
    scorer_percentile,
)

LABELS = {
    "folders": ["train"],
    "folder_weights": [1.0],
    "levels": [2, 4, 16],
    "prices": [0.0002, 0.005],
    "beam_width": 9,
    "num_clips": 10,
    "clips_per_shard": 4,
    "strides": [1, 2],
    "mirror": True,
    "reverse": True,
}
ROUTER = {
    "model": {
        "head": "blocks",
        "price_conditioned": True,
        "patch_size": 8,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    },
    "steps": 6,
    "batch_size": 4,
    "warmup_steps": 1,
    "temperature": 0.001,
    "ema_decay": 0.5,
    "validation_steps": 3,
    "checkpointing_steps": 3,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos in `train/`, `tokenizer/`, and `labels/` of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("router")
    (folder / "train").mkdir()
    for i in range(3):
        write_mp4(folder / "train" / f"{i}.mp4", frames=np.roll(make_frames(16 + 10 * i, 16, 24), 7 * i, axis=2))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    write_labels(LabelArguments(**LABELS | paths(folder)), Accelerator())
    return folder


def paths(folder: Path) -> dict[str, str]:
    return {"data_root": str(folder), "tokenizer": str(folder / "tokenizer"), "output_dir": str(folder / "labels")}


def write_recipe(path: Path, recipe: dict) -> Path:
    path.write_text(json.dumps(recipe))
    return path


def label(folder: Path, output: Path, fails: bool = False, **changes) -> str:
    recipe = write_recipe(folder / "labels.json", LABELS | changes)
    options = ["--data_root", folder, "--tokenizer", folder / "tokenizer", "--output_dir", output]
    return run_script("label_assignments.py", recipe, *options, fails=fails)


def train(folder: Path, output: Path, *options, fails: bool = False, **changes) -> str:
    recipe = write_recipe(folder / "router.json", ROUTER | changes)
    options = ["--data_root", folder, "--labels", folder / "labels", "--output_dir", output, *options]
    return run_script("train_router.py", recipe, *options, fails=fails)


def test_labels_are_the_losses_of_decoded_blocks(folder):
    plan, choices, trees = read_labels(folder / "labels")
    assert len(choices) == 10 and {choice.stride for choice in choices} == {1, 2}
    assert len({choice.mirrored for choice in choices}) == len({choice.reversed for choice in choices}) == 2
    videos, tokenizer = LabelledVideos(folder, ["train"], 16, 16), AdapTokModel.from_pretrained(folder / "tokenizer")
    frames = videos.cut(choices[:2]) / 255
    plain = videos.frames[choices[0].source][choices[0].start :: choices[0].stride][:16] / 255
    plain = plain.flip(0) if choices[0].reversed else plain
    assert torch.equal(frames[0], plain.flip(-1) if choices[0].mirrored else plain)
    with torch.no_grad():
        codes = tokenizer.encode(frames).codes
        for clip, tree in enumerate(trees[:2]):
            complete = [counts for counts in tree.losses if len(counts) == 4]
            assert len(complete) >= 27, "a beam of 9 has 27 ends at each price"
            for counts in complete[::9]:
                decoded = tokenizer.decode(codes[clip, None], torch.tensor([counts])).pixel_values_videos.clamp(0, 1)
                error = (decoded[0] - frames[clip]).square().unflatten(0, (4, 4)).flatten(1).mean(1).sqrt()
                assert tree.loss(counts) == pytest.approx(float(error.sum()), rel=1e-4)


def test_labels_in_mixed_precision(folder, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        half = Accelerator(mixed_precision="bf16")
        write_labels(LabelArguments(**LABELS | paths(folder) | {"output_dir": str(tmp_path)}), half)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    (_, _, whole), (plan, _, half) = read_labels(folder / "labels"), read_labels(tmp_path)
    assert plan["mixed_precision"] == "bf16"
    for counts in {counts for counts in whole[0].losses if len(counts) == 1}:
        assert half[0].losses[counts] != whole[0].losses[counts]
        assert half[0].losses[counts] == pytest.approx(whole[0].losses[counts], rel=0.02)
    with pytest.raises(ValueError, match="bf16"):  # one folder holds one precision
        write_labels(LabelArguments(**LABELS | paths(folder) | {"output_dir": str(tmp_path)}), Accelerator())


@pytest.mark.slow
def test_labels_of_a_resumed_run_are_the_same(folder, tmp_path):
    whole = {path.name: path for path in sorted((folder / "labels").glob("*.parquet"))}
    assert len(whole) == 3
    label(folder, tmp_path / "again")
    for name in list(whole)[1:]:
        (tmp_path / "again" / name).unlink()
    kept = (tmp_path / "again" / min(whole)).stat().st_mtime_ns
    label(folder, tmp_path / "again")
    assert (tmp_path / "again" / min(whole)).stat().st_mtime_ns == kept
    for name, path in whole.items():
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "again" / name))


def test_targets_are_the_cheapest_choices(folder):
    plan, _, trees = read_labels(folder / "labels")
    costs = ClipCosts(trees[0])
    for price in (0.0002, 0.005):
        target = costs.assignment_targets(price, 0.0)
        every = list(itertools.product(plan["levels"], repeat=4))
        best = every[int(target.argmax())]
        assert target.sum() == 1 and best == trees[0].best(price)
        assert costs.cost(best, price) == float(costs.costs(price).min()) and costs.cost((1, 2, 3, 4), price) is None
        blocks = costs.block_targets(price, 0.0)
        assert tuple(plan["levels"][level] for level in blocks.argmax(-1)) == best
        soft = costs.block_targets(price, 0.01)
        assert torch.equal(soft.argmax(-1), blocks.argmax(-1))
        torch.testing.assert_close(soft.sum(-1), torch.ones(4))


def hand_made(first: list[float], second: list[float]) -> ClipCosts:
    """Two blocks of 1 or 3 tokens whose losses add up; all assignments were measured."""
    losses = {(a,): x for a, x in zip((1, 3), first, strict=True)}
    losses |= {(a, b): x for a in (1, 3) for b, x in zip((1, 3), second, strict=True)}
    return ClipCosts(AssignmentTree(None, [1, 3], 2, losses))


def test_percentiles_of_a_hand_made_table():
    clips = [hand_made([9, 1], [4, 3]), hand_made([5, 4], [8, 2])]
    # costs at price 1 of (1, 1), (1, 3), (3, 1), (3, 3): 15 16 9 10, 15 11 16 12
    assert [clip.costs(1.0).tolist() for clip in clips] == [[15, 16, 9, 10], [15, 11, 16, 12]]
    assert choice_percentile(clips, [(3, 1), (1, 3)], 1.0) == 100
    assert choice_percentile(clips, [(1, 3), (3, 1)], 1.0) == 0
    assert choice_percentile(clips, [(3, 3), (3, 3)], 1.0) == pytest.approx(100 * (6 + 4) / (7 + 5))
    assert cheapest_schedule(clips, 1.0) == (3, 3) and cheapest_schedule(clips[:1], 1.0) == (3, 1)
    both = schedule_percentiles(clips[:1], clips, [1.0])
    assert both["val_percentile_schedule"] == pytest.approx(100 * (7 + 0) / 12)
    assert both["val_percentile_own_schedule"] == pytest.approx(100 * 10 / 12)


def test_what_was_not_measured_is_left_out():
    whole, partial = hand_made([9, 1], [4, 3]), hand_made([5, 4], [8, 2])
    partial.known = {counts: loss for counts, loss in partial.known.items() if counts != (3, 3)}
    assert choice_percentile([whole, partial], [(3, 1), (3, 3)], 1.0) == 100
    assert choice_percentile([partial], [(3, 3)], 1.0) is None
    assert cheapest_schedule([whole], 1.0, [partial]) == (3, 1)
    assert cheapest_schedule([whole, partial], 1.0) == (3, 1)
    partial.known = {}
    assert schedule_percentiles([whole], [partial], [1.0]) == {}


def test_a_scorer_is_compared_at_the_price_that_suits_it():
    """A scorer that knows the losses, but in other units, is as good as they are."""
    clips = [hand_made([9, 1], [4, 3]), hand_made([5, 4], [8, 2])]
    tables = iter(torch.tensor([[[9, 5, 1], [4.0, 3.5, 3]], [[5, 4.5, 4], [8, 5, 2]]]) * 100)
    encoded = SimpleNamespace(latents=None, codes=torch.zeros(1, 2, 3, dtype=torch.long))
    lookup = SimpleNamespace(lookup=lambda codes: codes, codebook=SimpleNamespace(weight=torch.zeros(1)))
    pipeline = SimpleNamespace(
        device=torch.device("cpu"),
        tokenizer=SimpleNamespace(encode=lambda video: encoded, dtype=torch.float32, device="cpu", quantizer=lookup),
        scorer=lambda *_: SimpleNamespace(scores=next(tables)[None]),
    )
    pipeline.scorer.config = SimpleNamespace(score_step=1)
    frames = [torch.zeros(1, 8, 3, 4, 4, dtype=torch.uint8)] * 2
    assert scorer_percentile(pipeline, frames, clips, [1.0]) == 100
    pipeline.scorer = None
    with pytest.raises(ValueError, match="scorer"):
        scorer_percentile(pipeline, frames, clips, [1.0])


def test_the_price_of_a_weight(folder):
    labels = Labels(folder / "labels", folder)
    with pytest.raises(ValueError, match=r"1\.2 .* 81 .* 27"):
        labels.price_of(1.2)
    every = list(itertools.product([2, 4, 16], repeat=4))
    losses = np.random.default_rng(0).random((2, 81))
    prefixes = dict.fromkeys((counts[:q] for counts in every for q in (1, 2, 3)), 0.0)
    trees = [AssignmentTree(None, [2, 4, 16], 4, prefixes | dict(zip(every, row.tolist(), strict=True))) for row in losses]
    labels.costs = [ClipCosts(tree) for tree in trees]
    price = labels.price_of(1.2)
    rewards = proxy_reward(losses, np.sum(every, axis=1), 1.2)
    for clip, row in zip(labels.costs, rewards, strict=True):
        assert every[row.argmax()] == min(clip.known, key=lambda counts: clip.cost(counts, price))


def test_the_recipe_of_the_paper():
    recipe = json.loads((Path(__file__).parents[2] / "training_scripts" / "recipes" / "router_paper.json").read_text())
    assert AdapTokRouterConfig(**recipe["model"]).to_dict() == AdapTokRouterConfig().to_dict()


@pytest.mark.slow
def test_a_run_and_its_resumption(folder, tmp_path):
    tokenizer, sizes = make_tokenizer(), {"num_blocks": 4, "latents_per_block": 16, "score_step": 2, "hidden_size": 16}
    scorer = AdapTokScorerModel(
        AdapTokScorerConfig(latent_size=tokenizer.config.hidden_size, num_attention_heads=2, num_hidden_layers=1, **sizes)
    )
    AdapTokPipeline(AdapTokVideoProcessor(16, 16, 4), tokenizer, scorer).save_pretrained(tmp_path / "scored")
    train(folder, tmp_path / "whole", "--val_labels", folder / "labels", "--scored_by", tmp_path / "scored")
    records = metrics(tmp_path / "whole")
    assert sorted(records) == list(range(1, 7)) and records[6]["loss"] > 0
    assert all(0 <= records[6][f"val_percentile{name}"] <= 100 for name in ("", "_own_schedule", "_scorer"))
    assert records[6]["val_percentile_own_schedule"] == records[6]["val_percentile_schedule"], "on the same labels"
    assert 0 <= records[6]["val_top1"] <= records[6]["val_measured_share"] <= 1
    train(folder, tmp_path / "parts", "--max_train_steps", 3)
    train(folder, tmp_path / "parts", "--resume_from_checkpoint", "latest")
    for name in ("model", "model_ema"):
        whole, parts = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    model = ROUTER["model"] | {"price_conditioned": False}
    assert "price_conditioned" in train(folder, tmp_path / "run", fails=True, model=model)
    router = AutoModel.from_pretrained(tmp_path / "whole" / "model")
    assert router.config.levels == [2, 4, 16] and router.config.price_conditioned
    assert router.route(torch.rand(1, 16, 3, 16, 16), 0.001).shape == (1, 4)


@pytest.mark.slow
def test_it_learns_its_clips_by_heart(folder, tmp_path):
    label(folder, tmp_path / "labels", num_clips=64)
    model = {"head": "assignment", "patch_size": 8, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    options = {"steps": 400, "batch_size": 32, "learning_rate": 0.003, "validation_steps": 400, "prices": [0.002]}
    train(folder, tmp_path / "run", "--labels", tmp_path / "labels", "--val_labels", tmp_path / "labels",
          model=model, temperature=0.0, **options)  # fmt: skip
    assert metrics(tmp_path / "run")[400]["val_top1"] > 0.97


def test_what_does_not_fit_is_named(folder, tmp_path):
    given = paths(folder) | {"output_dir": str(tmp_path / "labels")}
    with pytest.raises(ValueError, match="cosine"):
        LabelArguments(**LABELS | given | {"loss": "cosine"})
    with pytest.raises(ValueError, match="levels"):
        LabelArguments(**LABELS | given | {"levels": []})
    with pytest.raises(ValueError, match="99"):
        write_labels(LabelArguments(**LABELS | given | {"levels": [2, 99]}), Accelerator())
    with pytest.raises(ValueError, match="num_clips"):
        write_labels(
            LabelArguments(**LABELS | given | {"output_dir": str(folder / "labels"), "num_clips": 11}), Accelerator()
        )
    with pytest.raises(ValueError, match=tmp_path.name):
        read_labels(tmp_path)
    with pytest.raises(ValueError, match=r"-0\.1"):
        RouterArguments(data_root="", labels="", output_dir="", steps=1, prices=[-0.1])
    with pytest.raises(ValueError, match=r"0\.1.*1\.3"):
        RouterArguments(data_root="", labels="", output_dir="", steps=1, prices=[0.1], quality_weight=1.3)
    with pytest.raises(ValueError, match="val_labels"):
        RouterArguments(data_root="", labels="", output_dir="", steps=1, scored_by="small")
