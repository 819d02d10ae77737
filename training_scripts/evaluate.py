#!/usr/bin/env python
"""Evaluates models under a named protocol; the recipes hold the settings of the papers' tables.

On one process or many, which share the videos out (all of them must see the output folder); started again after a kill, it
goes on:

    accelerate launch training_scripts/evaluate.py training_scripts/recipes/evaluation/table6.json \
        --ucf101_folder UCF-101 --ucf101_splits ucfTrainTestlist --models converted/ --output_dir runs/table6

On a CPU, in a minute, with the checkpoint in the package:

    accelerate launch --cpu training_scripts/evaluate.py training_scripts/recipes/evaluation/tiny.json \
        --videos DATA/wild/val --output_dir runs/evaluation_tiny

`results.md` has the table, with the paper's printed numbers beside ours where the recipe has them; docs/evaluation.md says
what the other files hold. `--models` takes folders or Hub ids of pipelines (`adaptok convert` makes them of the original
checkpoints), in the order of the recipe's `model_names`.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from adaptok_hf import AdapTokPipeline
from adaptok_hf.data import VideoFiles, kinetics, ucf101
from adaptok_hf.evaluation import (
    draw_reconstruction,
    draw_videos,
    evaluate_generation,
    evaluate_prediction,
    evaluate_reconstruction,
    load_networks,
    open_videos,
    own_protocol,
    time_allocation,
)
from adaptok_hf.metrics import PROTOCOLS, Protocol
from adaptok_hf.training.recipes import parse_arguments

TASKS = ("reconstruction", "generation", "prediction", "allocation_time")


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Where results go; a killed run goes on there."})
    task: str = field(default="reconstruction", metadata={"help": f"One of {', '.join(TASKS)}."})
    title: str = field(default="", metadata={"help": "Of the table in the paper, for people."})

    models: list[str] = field(default_factory=list, metadata={"help": "Pipelines; default: the one in the package."})
    model_names: list[str] = field(default_factory=list, metadata={"help": "Their names in the table."})

    videos: str | None = field(default=None, metadata={"help": "A folder of videos or a csv manifest."})
    ucf101_folder: str | None = field(default=None, metadata={"help": "UCF-101 as it unpacks: its train list is taken."})
    ucf101_splits: str | None = field(default=None, metadata={"help": "The folder of its official split files."})
    kinetics_folder: str | None = field(default=None, metadata={"help": "Videos of Kinetics."})
    kinetics_csv: str | None = field(default=None, metadata={"help": "Their list, such as that of validation."})
    num_videos: int | None = field(default=None, metadata={"help": "Real videos; default: the protocol's number."})
    protocol: str | None = field(default=None, metadata={"help": f"One of {', '.join(PROTOCOLS)}; default: your own."})
    window: str = field(default="first", metadata={"help": "Without a protocol: 'first', 'random' or 'all' clips."})

    strategies: list[str] = field(default_factory=lambda: ["fixed"], metadata={"help": "Of allocation."})
    budgets: list[str] = field(default_factory=lambda: ["50%"], metadata={"help": "Tokens per block, or percentages."})
    allocation_batches: list[int] = field(default_factory=lambda: [64], metadata={"help": "Videos that share a budget."})
    ipal_budgets: str = field(default="equal", metadata={"help": "'equal', or 'published': the original's per position."})

    num_generated: int | None = field(default=None, metadata={"help": "Default: the protocol's number."})
    num_condition_frames: int | None = field(default=None, metadata={"help": "Default: the protocol's number."})
    classifier_videos: str | None = field(
        default=None, metadata={"help": "Labelled real videos that a classifier learns from: adds class accuracy."}
    )
    classifier_features: str = field(default="pixels", metadata={"help": "It sees 'pixels', or features of the 'network'."})
    guidance_scale: float | None = field(default=None, metadata={"help": "Default: the protocol's."})
    temperature: float | None = field(default=None, metadata={"help": "0 takes the likeliest token."})
    top_k: int | None = field(default=None)
    top_p: float | None = field(default=None)

    num_blocks: list[int] = field(default_factory=list, metadata={"help": "Of clips whose allocation is timed."})
    clip_budgets: list[int] = field(default_factory=list, metadata={"help": "Tokens per clip, of the same."})

    lpips: str = field(default="vgg", metadata={"help": "'vgg', 'alex' or 'none'."})
    fvd: bool = field(default=True, metadata={"help": "Whether to measure FVD."})
    fvd_budgets: list[str] = field(default_factory=list, metadata={"help": "FVD at these budgets only; default: all."})
    scorer_loss: str | None = field(
        default=None,
        metadata={"help": "What scores are compared with: 'rmse', 'l1' or 'lpips'; default: the scorer's target."},
    )
    plots: bool = field(default=True, metadata={"help": "Whether to draw."})
    batch_size: int = field(default=64, metadata={"help": "Clips at once on one process."})
    seed: int = field(default=0)
    paper: list[str] = field(default_factory=list, metadata={"help": "The paper's numbers, one JSON object each."})

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}; known are {', '.join(PROTOCOLS)}")
        if self.models and self.model_names and len(self.models) != len(self.model_names):
            raise ValueError(f"{len(self.models)} models were given for the names {', '.join(self.model_names)}")
        # a recipe holds objects, a command line their text
        self.paper = [json.loads(line) if isinstance(line, str) else line for line in self.paper]


def open_source(args: Arguments) -> VideoFiles:
    """The videos that the arguments name.

    Raises:
        ValueError, OSError: for none or several, and for folders and lists that are not there.
    """
    given = [name for name in ("videos", "ucf101_folder", "kinetics_folder") if getattr(args, name)]
    if len(given) != 1:
        raise ValueError(f"give one of --videos, --ucf101_folder, --kinetics_folder; got {', '.join(given) or 'none'}")
    if args.ucf101_folder:
        if not args.ucf101_splits:
            raise ValueError("--ucf101_folder needs --ucf101_splits")
        return ucf101(args.ucf101_folder, args.ucf101_splits, split="train")
    if args.kinetics_folder:
        if not args.kinetics_csv:
            raise ValueError("--kinetics_folder needs --kinetics_csv")
        return kinetics(args.kinetics_csv, args.kinetics_folder)
    return open_videos(args.videos)


def make_protocol(args: Arguments, pipeline: AdapTokPipeline) -> Protocol:
    """The named one, with what the arguments change; its name then says so."""
    if args.protocol is None:
        protocol = own_protocol(pipeline, args.videos or "videos", args.window, args.task)
    else:
        protocol = PROTOCOLS[args.protocol]
    changes = {"num_condition_frames": args.num_condition_frames, "guidance_scale": args.guidance_scale}
    changes = {name: value for name, value in changes.items() if value not in (None, getattr(protocol, name))}
    if args.task == "prediction" and not protocol.num_condition_frames:
        changes.setdefault("num_condition_frames", 5)
    return dataclasses.replace(protocol, **changes)


def main() -> None:
    args = parse_arguments(Arguments)
    logging.basicConfig(level=logging.WARNING)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if args.task == "allocation_time":
        if accelerator.is_main_process:
            report = time_allocation(args.output_dir, args.num_blocks, args.clip_budgets, args.allocation_batches[0],
                                     paper=args.paper, seed=args.seed)  # fmt: skip
            print((Path(args.output_dir) / "results.md").read_text(), end="")
            assert report["results"]
        return
    names = args.model_names or [Path(model).name or model for model in args.models] or ["shipped"]
    pipelines = {}
    for name, model in zip(names, args.models or [None] * len(names), strict=True):
        pipelines[name] = AdapTokPipeline.from_pretrained(model).to(accelerator.device)
        pipelines[name].set_progress_bar_config(disable=True)
    first = next(iter(pipelines.values()))
    protocol = make_protocol(args, first)
    source = draw_videos(open_source(args), args.num_videos or protocol.num_real, args.seed)
    networks = load_networks("none" if args.task == "generation" else args.lpips, args.fvd, accelerator.device)
    common = {"networks": networks, "batch_size": args.batch_size, "seed": args.seed, "paper": args.paper}
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    if args.task == "reconstruction":
        report = evaluate_reconstruction(
            pipelines, source, protocol, args.output_dir, strategies=args.strategies, budgets=args.budgets,
            batches=args.allocation_batches, ipal_budgets=args.ipal_budgets, fvd_budgets=args.fvd_budgets or None, **common,
        )  # fmt: skip
        if report is not None and args.plots:
            draw_reconstruction(args.output_dir, report, first, source, protocol, networks.lpips, args.scorer_loss)
    elif args.task == "generation":
        count = args.num_generated or protocol.num_fake or 256
        report = evaluate_generation(
            first, source, protocol, args.output_dir, num_videos=count, sampling=sampling, model_name=names[0],
            classifier_source=open_videos(args.classifier_videos) if args.classifier_videos else None,
            classifier_features=args.classifier_features, **common,
        )  # fmt: skip
    else:
        report = evaluate_prediction(
            first, source, protocol, args.output_dir, sampling=sampling, model_name=names[0], **common
        )
    if report is not None:
        print((Path(args.output_dir) / "results.md").read_text(), end="")


if __name__ == "__main__":
    main()
