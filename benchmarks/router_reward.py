"""How near a router comes to the best of all assignments: EVATok's Table 8, next to its printed numbers.

    python benchmarks/router_reward.py --recipe training_scripts/recipes/evaluation/evatok_table8.json \
        --data_root DATA --labels runs/labels_val --router runs/router/model

The labels are of other clips than the router's own, by `label_assignments.py` with a beam of levels ** (blocks - 1): so
every assignment was measured. A percentile is the share of the reward's range from the worst to the best assignment. Top-1
and top-5 are how often the best assignment is among those that the router finds most probable. Next to the paper's two
choices stands the best constant schedule of these clips, one assignment for all.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from adaptok_hf import AdapTokRouterModel
from adaptok_hf.allocation import assignments, proxy_reward, reward_percentile
from adaptok_hf.training.router.trainer import Labels

MEASURES = ("percentile", "top1", "top5")


def log_probabilities(router: AdapTokRouterModel, labels: Labels, price: float, every: np.ndarray) -> np.ndarray:
    """Return (clips, assignments) of all assignments, in their order."""
    index = torch.from_numpy(np.searchsorted(labels.plan["levels"], every))
    rows = []
    for frames in labels.frames():
        logits = router(frames / 255, price if router.config.price_conditioned else None).logits[0].log_softmax(-1)
        rows.append(logits if router.config.head == "assignment" else logits.gather(1, index.T).sum(0))
    return torch.stack(rows).numpy()


@torch.no_grad()
def measure_choices(router: AdapTokRouterModel, labels: Labels, quality_weight: float) -> dict[str, dict[str, float]]:
    """Return the measures of each kind of choice, in percent."""
    if router.config.levels != labels.plan["levels"]:
        raise ValueError(f"the router knows the levels {router.config.levels}, the labels {labels.plan['levels']}")
    price = labels.price_of(quality_weight)  # raises unless every assignment was measured
    every = assignments(labels.plan["levels"], labels.plan["num_blocks"])
    losses = np.array([[clip.known[tuple(counts)] for counts in every.tolist()] for clip in labels.costs])
    rewards = proxy_reward(losses, every.sum(1), quality_weight)
    uniform = np.flatnonzero((every == every[:, :1]).all(1))
    ranked = (-log_probabilities(router, labels, price, every)).argsort(axis=1)
    hits = ranked == rewards.argmax(1)[:, None]
    choices = {
        "best uniform of each clip": uniform[rewards[:, uniform].argmax(1)],
        "best schedule of all clips": np.full(len(rewards), rewards.mean(0).argmax()),
        "router": ranked[:, 0],
    }
    measured = {name: {"percentile": reward_percentile(rewards, chosen)} for name, chosen in choices.items()}
    measured["router"] |= {f"top{count}": 100 * hits[:, :count].any(1).mean() for count in (1, 5)}
    return measured


def print_table(measured: dict[str, dict[str, float]], recipe: dict) -> None:
    rows = [("here", *item) for item in measured.items()]
    rows += [(f"paper, {line['data']}", line["choice"], line) for line in recipe["paper"]]
    print(f"| data | choice | {' | '.join(MEASURES)} |\n" + "|---" * (2 + len(MEASURES)) + "|")
    for data, choice, values in rows:
        cells = [f"{values[name]:.2f}" if name in values else "" for name in MEASURES]
        print(f"| {data} | {choice} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data_root", required=True, help="folder that the labelled videos are below")
    parser.add_argument("--labels", required=True, help="folder of label_assignments.py")
    parser.add_argument("--router", required=True)
    arguments = parser.parse_args()
    recipe = json.loads(arguments.recipe.read_text())
    labels, router = Labels(arguments.labels, arguments.data_root), AdapTokRouterModel.from_pretrained(arguments.router)
    measured = measure_choices(router.eval(), labels, recipe["quality_weight"])
    print(f"{len(labels)} clips, w_q {recipe['quality_weight']}\n")
    print_table(measured, recipe)


if __name__ == "__main__":
    main()
