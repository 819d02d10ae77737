"""Clips per second of the tokenizer's training step, its share of the machine's matrix rate, and where the rest goes.

    OMP_NUM_THREADS=1 python benchmarks/training.py
    python benchmarks/training.py --recipe training_scripts/recipes/demo/tokenizer_small_gpu.json --batch 8

The step is the trainer's own (`TokenizerTrainer.update`): clips of a made video, random token counts, the recipe's losses
but LPIPS, optimizers, and the codebook's average; all blocks of a clip, quantized. The plain way takes turns with it: the
same step with encoder and decoder in float32, a mask over the whole sequence in every layer, and dropped tokens worked on.
Both start from the same weights and see the same clips; the losses at the end are printed. Times are CPU time (on a GPU
the wall clock up to the end of its queue), ratios the median of all turns with the lowest and the highest.

The matrix rate is that of a product of two large bfloat16 matrices; the operations of a step are those of all its matrix
products, Muon's among them. The profile counts wall clock: run it on a machine that does nothing else.
"""

import argparse
import json
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from codec import dense_encode, machine, masked_decode
from made_video import FPS, moving_picture
from timing import matrix_rate, ratios, seconds
from torch.profiler import profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from adaptok_hf import AdapTokConfig, AdapTokModel, write_video
from adaptok_hf.training.clips import open_clips
from adaptok_hf.training.run_folder import RunFolder
from adaptok_hf.training.tokenizer.arguments import Arguments
from adaptok_hf.training.tokenizer.trainer import TokenizerTrainer
from adaptok_hf.training.tokenizer.training_step import build_model

RECIPES = Path(__file__).parents[1] / "training_scripts" / "recipes"
RANGES = ("data", "quantizer", "Optimizer.step")  # of these all operations count together
GROUPS = {  # of the others, what their names contain
    "attention": r"bmm|softmax|scaled_dot_product|attention",
    "matrix products": r"aten::(mm|addmm|_?convolution\w*)$|mkldnn_(linear|convolution)",
    "norm and gelu": r"layer_norm|gelu",
    "casts and copies": r"copy_?$|::cat$|::(fill|zero)_$",
}


def read_arguments(recipe: Path, folder: Path, batch: int | None = None, **changes: dict) -> Arguments:
    """Return a recipe's arguments for steps on the videos of `folder`: whole clips, without LPIPS, whose weights are large.

    Args:
        changes: entries of the recipe's dictionaries.
    """
    entries = json.loads(recipe.read_text())
    entries |= {name: entries[name] | change for name, change in changes.items()}
    num_blocks = AdapTokConfig(**entries["model"]).num_blocks
    stage = {"steps": 10**6, "num_blocks": num_blocks, "batch_size": batch or entries["stages"][-1]["batch_size"]}
    entries |= {"train_folders": ["videos"], "train_weights": [1.0], "photo_folders": [], "photo_weight": 0.0}
    entries |= {"val_folder": None, "perceptual_weight": 0.0, "stages": [stage], "warmup_epochs": None}
    return Arguments(data_root=str(folder), output_dir=str(folder / "run"), **entries)


def build_trainer(
    args: Arguments, device: str, prepare: Callable[[AdapTokModel], object] | None = None
) -> TokenizerTrainer:
    """Return a trainer in bfloat16 autocast, with a made video for data; `prepare` may change its model before."""
    videos = Path(args.data_root) / "videos"
    if not videos.exists():
        videos.mkdir()
        write_video(videos / "moving.mp4", moving_picture(1), FPS)
    run = RunFolder(args.output_dir, args, Accelerator(cpu=device == "cpu", mixed_precision="bf16"))
    set_seed(args.seed)
    model = build_model(args)
    clips, _ = open_clips(args, model.config)
    trainer = TokenizerTrainer(args, run, model, clips, None)
    if prepare is not None:
        prepare(model)
    return trainer


def take_step(trainer: TokenizerTrainer) -> None:
    """Update once, with the learning rate of the schedule."""
    step = trainer.progress.step
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = trainer.learning_rate(step) * group.get("factor", 1.0)
    trainer.update(step)
    trainer.progress.step = step + 1


def use_plain_way(model: AdapTokModel) -> None:
    """Let a model run in float32, with masks over the whole sequence and torch's own choice of attention."""

    def encode(video: torch.Tensor, **recorded: bool) -> torch.Tensor:
        with torch.autocast(video.device.type, enabled=False):
            return dense_encode(model, video)

    def decode(quantized: torch.Tensor, token_counts: torch.Tensor | None, **recorded: bool) -> torch.Tensor:
        if token_counts is None:
            token_counts = torch.full(quantized.shape[:2], quantized.shape[2])
        with torch.autocast(quantized.device.type, enabled=False):
            return masked_decode(model, quantized.float(), token_counts.to(quantized.device))

    model.set_attn_implementation("sdpa")
    model.encoder.forward, model.decoder.forward = encode, decode


def count_training_operations(trainer: TokenizerTrainer) -> int:
    """Return the operations of a step's matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        take_step(trainer)
    return counter.get_total_flops()


def name_range(owner: object, method: str, name: str) -> None:
    """Let a method's operations be found in profiles."""
    inner = getattr(owner, method)

    def call(*args, **kwargs):
        with record_function(name):
            return inner(*args, **kwargs)

    setattr(owner, method, call)


def group_of(event) -> str:
    """Return the group of an operation in a profile."""
    ancestor = event
    while ancestor is not None:
        for name in RANGES:
            if ancestor.name.startswith(name):
                return name
        ancestor = ancestor.cpu_parent
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, event.name)), "other")


def profile_steps(trainer: TokenizerTrainer, steps: int, device: str) -> dict[str, float]:
    """Return the share of each group of operations in some steps' time, the largest first."""
    name_range(trainer.clips, "next_batch", "data")
    name_range(trainer.model.quantizer, "forward", "quantizer")
    if trainer.codebook_average is not None:
        name_range(trainer.codebook_average, "update", "quantizer")
    kind = "device" if device == "cuda" else "cpu"
    with profile() as profiler:
        for _ in range(steps):
            take_step(trainer)
        if device == "cuda":
            torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in profiler.events():
        times[group_of(event)] += getattr(event, f"self_{kind}_time_total")
    return {group: time / times.total() for group, time in times.most_common()}


def last_loss(trainer: TokenizerTrainer) -> float:
    """Return the mean loss of the steps since it was last asked."""
    return trainer.progress.means.pop(trainer.accelerator)["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "demo" / "tokenizer_figures.json")
    parser.add_argument("--batch", type=int, help="clips of a step (default: those of the recipe's last stage)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device, ways = arguments.device, {"ours": None, "plain": use_plain_way}
    with tempfile.TemporaryDirectory() as folder:
        args = read_arguments(arguments.recipe, Path(folder), arguments.batch)
        if args.architecture != "adaptok":
            parser.error(f"the plain way is that of AdapTok: --recipe has architecture {args.architecture!r}")
        trainers = {name: build_trainer(args, device, prepare) for name, prepare in ways.items()}
        for trainer in trainers.values():  # a profile needs its steps warm, too
            take_step(trainer)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.repeats):
            for name, trainer in trainers.items():
                times[name].append(seconds(lambda t=trainer: take_step(t), device))
        rate, batch = matrix_rate(device), args.stages[0]["batch_size"]
        print(f"{arguments.recipe.name}, {batch} clips a step\n{machine(device)}")
        print(f"a product of bfloat16 matrices: {rate / 1e12:.3f} TFLOP/s\n")
        for name, trainer in trainers.items():
            median, loss = statistics.median(times[name]), last_loss(trainer)
            operations = count_training_operations(trainer)
            print(
                f"{name:6}{batch / median:8.2f} clips/s   {ratios(times['plain'], times[name]):26}"
                f"{operations / 1e12:.3f} TFLOP, {operations / median / rate:.1%} of the matrix rate   loss {loss:.4f}"
            )
        print("\nwhere a step's time goes:")
        for group, share in profile_steps(trainers["ours"], 3, device).items():
            print(f"  {group:18}{share:6.1%}")


if __name__ == "__main__":
    main()
