"""`adaptok evaluate ...` and `adaptok metrics ...`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoints import DEFAULT_CHECKPOINT, DEFAULT_GENERATORS
from .common import (
    MODEL_HELP,
    add_json_option,
    add_sampling_options,
    add_seed_option,
    add_verb,
    load_pipeline,
    sampling_arguments,
)
from .outputs import EVALUATION_FILES, add_overwrite_option, check_folder, output_file, output_folder


class _Recipe(argparse.Action):
    """`--recipe FILE ARGUMENTS`: a file names the task and its options; the arguments after it override them."""

    def __init__(self, *args, tasks: dict[str, argparse.ArgumentParser], **kwargs):
        super().__init__(*args, nargs=argparse.REMAINDER, **kwargs)
        self.tasks = tasks

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if not values:
            raise argparse.ArgumentError(self, "expected a file")
        path, *argv = values
        try:
            recipe = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise argparse.ArgumentError(self, f"{path}: {error}") from error
        if not isinstance(recipe, dict):
            raise argparse.ArgumentError(self, f"{path}: expected options by name, got {type(recipe).__name__}")
        task = recipe.pop("task", None)
        recipe.pop("title", None)
        if task not in self.tasks:
            raise argparse.ArgumentError(self, f"{path}: the task must be one of {', '.join(self.tasks)}, got {task!r}")
        options = vars(self.tasks[task].parse_args(argv))
        if unknown := sorted(recipe.keys() - options.keys()):
            raise argparse.ArgumentError(self, f"{path}: {task} has no options {', '.join(unknown)}")
        self.tasks[task].set_defaults(**recipe)
        for name, value in vars(self.tasks[task].parse_args(argv)).items():
            setattr(namespace, name, value)


def add_commands(verbs: Any) -> None:
    """Register both commands with the parser of `adaptok`."""
    _add_evaluate(
        add_verb(
            verbs,
            "evaluate",
            "measure a model over videos: numbers with intervals, tables, plots",
            "evaluate reconstruction videos/ -o out --budgets 12.5% 25% --no-fvd",
            "evaluate --recipe training_scripts/recipes/evaluation/table6.json videos/ -o out",
            usage="%(prog)s TASK DATA -o FOLDER [options]\n       %(prog)s --recipe FILE DATA -o FOLDER [options]",
        )
    )
    _add_metrics(
        add_verb(
            verbs,
            "metrics",
            "network weights of metrics; videos of other systems",
            "metrics fetch",
            "metrics compare real/ fake/ -o comparison.json",
        )
    )


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    parsers = verb.add_subparsers(title="tasks", metavar="TASK", prog=verb.prog)
    verb.set_defaults(run=lambda _: verb.error("give a task or --recipe FILE"))
    parser = add_verb(
        parsers,
        "reconstruction",
        "budgets x strategies: PSNR, SSIM, LPIPS, FVD, bits",
        "evaluate reconstruction videos/ -o out",
        "evaluate reconstruction videos/ -o out --budgets 16 25% --strategies fixed joint measured --no-fvd --json",
    )
    tasks = {"reconstruction": parser}
    _add_data(parser, "all", DEFAULT_CHECKPOINT)
    parser.add_argument(
        "--budgets", nargs="+", default=["6.25%", "12.5%", "25%", "50%", "100%"], metavar="B",
        help="average tokens per block, or percentages such as 25%%; own: what router chooses without a budget "
        "(default: 6.25%% 12.5%% 25%% 50%% 100%%)",
    )  # fmt: skip
    parser.add_argument(
        "--strategies", nargs="+", metavar="S",
        help="of allocation, next to the baselines fixed and schedule, the best constant schedule (default: the model's)",
    )  # fmt: skip
    _add_schedules(parser)
    parser.add_argument(
        "--allocation-batch", type=int, nargs="+", default=[64], metavar="N",
        help="videos whose clips share a budget, in strategies that share it (default: 64)",
    )  # fmt: skip
    parser.add_argument("--ipal-budgets", choices=["equal", "published"], default="equal", help="per block position")
    parser.add_argument(
        "--scorer-loss",
        choices=["perceptual", "mse", "psnr", "ssim", "rmse", "l1"],
        help="what the scorer predicts (default: as its configuration says)",
    )
    parser.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help="draw (default: yes)")
    _add_running(parser)
    parser.set_defaults(run=partial(_run, _reconstruction))

    parser = add_verb(
        parsers,
        "generation",
        "generated videos of classes against real ones: FVD, tokens per class",
        "evaluate generation videos/ -o out --videos 256",
        "evaluate generation videos/ -o out --class surfing --classifier-videos train/",
    )
    tasks["generation"] = parser
    _add_data(parser, "random", DEFAULT_GENERATORS)
    parser.add_argument("--videos", type=int, metavar="N", help="to generate (default: the protocol's number, or 256)")
    parser.add_argument("--class", dest="classes", action="append", metavar="CLASS", help="name or id (default: all)")
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE", help="classifier-free guidance (default: the protocol's)"
    )
    parser.add_argument(
        "--classifier-videos", metavar="DATA",
        help="labeled real videos, other than DATA, that a small classifier learns from: adds its accuracy",
    )  # fmt: skip
    parser.add_argument(
        "--classifier-features", choices=["pixels", "network"], default="pixels",
        help="what it sees: small pictures (quick), or features of FVD's network (default: pixels)",
    )  # fmt: skip
    add_sampling_options(parser)
    _add_running(parser, lpips=False)
    parser.set_defaults(run=partial(_run, _generation))

    parser = add_verb(
        parsers,
        "prediction",
        "predicted frames against the true ones: FVD, PSNR over the frames",
        "evaluate prediction videos/ -o out --condition-frames 5 --temperature 0.6",
    )
    tasks["prediction"] = parser
    _add_data(parser, "first", DEFAULT_GENERATORS)
    parser.add_argument("--condition-frames", type=int, metavar="N", help="given (default: the protocol's, or 5)")
    add_sampling_options(parser)
    _add_running(parser)
    parser.set_defaults(run=partial(_run, _prediction))
    verb.add_argument(
        "--recipe", action=_Recipe, tasks=tasks, metavar="FILE",
        help="a JSON file with a task and its options, such as those in training_scripts/recipes/evaluation; the task's "
        "arguments follow it and override it",
    )  # fmt: skip


def _add_schedules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schedule-videos", metavar="DATA",
        help="other videos, such as those of training, on which schedules are learned (default: DATA itself, where each "
        "video gets the schedule of the others)",
    )  # fmt: skip
    parser.add_argument(
        "--schedule-clips", type=int, default=32, metavar="N", help="at most, of one video each, for it (default: 32)"
    )
    parser.add_argument(
        "--schedule-loss", choices=["rmse", "mse", "psnr"], default="rmse", help="that schedules minimize (default: rmse)"
    )


def _add_metrics(verb: argparse.ArgumentParser) -> None:
    tasks = verb.add_subparsers(title="tasks", required=True, metavar="TASK")
    task = add_verb(
        tasks, "fetch", "get the true weights of I3D and LPIPS, and verify them", "metrics fetch --what lpips_vgg"
    )
    add_json_option(task)
    task.add_argument("--what", nargs="+", metavar="NAME", help="i3d_kinetics400, lpips_vgg, lpips_alex (default: all)")
    task.set_defaults(run=_fetch)
    task = add_verb(
        tasks,
        "compare",
        "PSNR, SSIM, LPIPS of videos with the same name, FVD of the sets",
        "metrics compare real/ fake/",
        "metrics compare real/ fake/ --protocol adaptok_wild_val",
        "metrics compare a.mp4 b.mp4 --no-fvd -o comparison.json",
    )
    add_json_option(task)
    task.add_argument("real", help="a folder of videos or of folders of frames (png, jpg, ...), a video, or a csv manifest")
    task.add_argument("fake", help="the same kind")
    task.add_argument("-o", "--output", metavar="FILE", help="write the result as JSON, too")
    add_overwrite_option(task)
    task.add_argument("--protocol", metavar="NAME", help="a named protocol, in place of the next three")
    task.add_argument("--window", choices=["first", "all"], help="clips of a video (default: first)")
    task.add_argument("--frames", type=int, metavar="N", help="of a clip (default: 16)")
    task.add_argument("--size", type=int, metavar="PIXELS", help="to measure at (default: that of the fake videos)")
    _add_networks(task)
    task.set_defaults(run=_compare)


def _add_data(task: argparse.ArgumentParser, window: str, default: str) -> None:
    task.add_argument("data", help="a folder of videos (sub-folders are classes), or a csv manifest with a column 'path'")
    task.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for results; a killed run resumes there")
    add_overwrite_option(task)
    task.add_argument(
        "--ucf101-splits", metavar="FOLDER", help="data is UCF-101 as it unpacks: take the train list of these split files"
    )
    task.add_argument("--kinetics-csv", metavar="FILE", help="data is a folder of Kinetics: take the videos of this list")
    task.add_argument("--model", action="append", metavar="FOLDER", help=f"{MODEL_HELP}; may be repeated where models "
                      f"are compared (default: {default})")  # fmt: skip
    task.add_argument("--model-names", nargs="+", metavar="NAME", help="in the table, in the order of --model")
    task.add_argument("--protocol", metavar="NAME", help="a named protocol (default: one of your own from these options)")
    task.add_argument(
        "--window", choices=["first", "random", "all"], default=window, help=f"clips of a video (default: {window})"
    )
    task.add_argument(
        "--max-videos", type=int, metavar="N", help="of the data; more than there are repeats them, for random windows"
    )


def _add_networks(task: argparse.ArgumentParser, lpips: bool = True) -> None:
    if lpips:
        task.add_argument("--lpips", choices=["vgg", "alex", "none"], default="vgg", help="its network (default: vgg)")
    task.add_argument(
        "--fvd", action=argparse.BooleanOptionalAction, default=True,
        help="measure FVD; I3D takes seconds per clip on a CPU (default: yes)",
    )  # fmt: skip
    task.add_argument("--device", help="such as cpu or cuda (default: cuda if there is one)")


def _add_running(task: argparse.ArgumentParser, lpips: bool = True) -> None:
    _add_networks(task, lpips)
    task.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips at once (default: 8)")
    add_seed_option(task)
    add_json_option(task)
    task.set_defaults(paper=())  # only recipes have the paper's numbers


def _run(task: Callable, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Check what needs no model, claim the output folder in the main process, and run a task of `evaluate`.

    Returns:
        The report, in the process that has it.
    """
    from ..allocation import STRATEGIES
    from ..evaluation.part_files import process_state

    _protocol(arguments.protocol)
    if unknown := [name for name in getattr(arguments, "strategies", None) or () if name not in (*STRATEGIES, "schedule")]:
        raise ValueError(f"unknown strategies {', '.join(unknown)}; known are {', '.join(STRATEGIES)}")
    folder, data = check_folder(arguments.output), Path(arguments.data)
    if not data.exists():
        raise FileNotFoundError(f"{data}: no such file or folder")
    if folder.exists() and folder.samefile(data):
        raise ValueError(f"the output folder {folder} is the folder of the videos; give another one")
    if not process_state().is_main_process:
        return task(arguments)
    inputs = [path for path in (data, arguments.kinetics_csv) if path is not None and Path(path).is_file()]
    resumed = (folder / "parts" / "configuration.json").exists()  # then its results are made again
    with output_folder(folder, EVALUATION_FILES, *inputs, overwrite=resumed or arguments.overwrite, recursive=True):
        return task(arguments)


def _reconstruction(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from ..evaluation import draw_reconstruction, evaluate_reconstruction, open_videos

    networks, models = _networks(arguments), _load_models(arguments)
    first = next(iter(models.values()))
    source, protocol = _data(arguments, first, "reconstruction")
    report = evaluate_reconstruction(
        models,
        source,
        protocol,
        arguments.output,
        strategies=arguments.strategies,
        budgets=arguments.budgets,
        batches=arguments.allocation_batch,
        ipal_budgets=arguments.ipal_budgets,
        schedule_videos=open_videos(arguments.schedule_videos) if arguments.schedule_videos else None,
        num_schedule_clips=arguments.schedule_clips,
        schedule_loss=arguments.schedule_loss,
        networks=networks,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        paper=arguments.paper,
    )
    if report is not None and arguments.plots:
        draw_reconstruction(arguments.output, report, first, source, protocol, networks.lpips, arguments.scorer_loss)
    return _print_results(report, arguments.output)


def _generation(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from ..evaluation import evaluate_generation, open_videos

    ((name, pipeline),) = _load_models(arguments, one=True).items()
    source, protocol = _data(arguments, pipeline, "generation")
    if arguments.guidance is not None:
        protocol = dataclasses.replace(protocol, guidance_scale=arguments.guidance)
    options = {"num_videos": (protocol.num_fake or 256) if arguments.videos is None else arguments.videos}
    if arguments.classifier_videos:
        options["classifier"] = open_videos(arguments.classifier_videos)
        options["classifier_features"] = arguments.classifier_features
    return _evaluate(evaluate_generation, arguments, name, pipeline, source, protocol, classes=arguments.classes, **options)


def _prediction(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from ..evaluation import evaluate_prediction

    ((name, pipeline),) = _load_models(arguments, one=True).items()
    source, protocol = _data(arguments, pipeline, "prediction")
    num_given = arguments.condition_frames or protocol.num_condition_frames or 5
    protocol = dataclasses.replace(protocol, num_condition_frames=num_given)
    return _evaluate(evaluate_prediction, arguments, name, pipeline, source, protocol)


def _evaluate(evaluate: Callable, arguments: argparse.Namespace, name: str, pipeline, source, protocol, **options):
    """Run an evaluation of a generator and print its table; return the report."""
    report = evaluate(
        pipeline,
        source,
        protocol,
        arguments.output,
        networks=_networks(arguments),
        sampling=sampling_arguments(arguments),
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        paper=arguments.paper,
        model_name=name,
        **options,
    )
    return _print_results(report, arguments.output)


def _fetch(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..metrics import NETWORKS, fetch_network_weights
    from ..metrics.network_weights import cache_folder

    print(f"cache: {cache_folder()}")
    unverified, records = [], []
    for record in fetch_network_weights(arguments.what or NETWORKS):
        records.append(dataclasses.asdict(record) | {"path": str(record.path)})
        origin = "downloaded now" if record.downloaded else "was there"
        checked = "verified" if record.verified else "NOT the weights that this package knows"
        print(f"{record.name}: {record.path.name}, {origin}; from {record.source}; sha256 {record.sha256}: {checked}")
        unverified += [] if record.verified else [record.name]
    if unverified:
        raise ValueError(f"the weights of {', '.join(unverified)} could not be verified; delete them and fetch again")
    return {"cache": str(cache_folder()), "networks": records}


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..atomic_files import write_json
    from ..evaluation import compare_videos

    inputs, output = (arguments.real, arguments.fake), arguments.output
    options = {"window": arguments.window, "num_frames": arguments.frames, "image_size": arguments.size}
    options["protocol"] = _protocol(arguments.protocol)
    with output_file(output, *inputs, overwrite=arguments.overwrite) if output else nullcontext():
        networks = _networks(arguments)
        result = compare_videos(*inputs, networks=networks, **options)
        if output:
            write_json(output, _finite(result))
    if not arguments.json:  # the numbers of all, as JSON too
        print(json.dumps({k: v for k, v in _finite(result).items() if k != "pairs"}, indent=1, allow_nan=False))
    return _finite(result)


def _finite(result: dict) -> dict:
    """Return the result with null for the infinite PSNR of identical clips, which JSON does not have."""
    pairs = [{k: None if v == float("inf") else v for k, v in pair.items()} for pair in result["pairs"]]
    return result | {"pairs": pairs}


def _device(arguments: argparse.Namespace) -> str:
    """Return the device of this process, one of those that `accelerate launch` started."""
    from ..evaluation.part_files import process_state

    device = process_state().device
    return arguments.device or str(device if device.type == "cuda" else "cpu")


def _load_models(arguments: argparse.Namespace, one: bool = False) -> dict[str, Any]:
    """Return the pipelines by their names in the table; with `one`, raise `ValueError` for several."""
    paths, names = arguments.model or [DEFAULT_GENERATORS if one else DEFAULT_CHECKPOINT], arguments.model_names
    if one and len(paths) > 1:
        raise ValueError(f"expected one --model, got {len(paths)}: {', '.join(paths)}")
    if names is None:
        names = [Path(path).name or path for path in paths]
        if len(set(names)) < len(names):
            names = [path.strip("/").replace("/", "_") for path in paths]
    if len(names) != len(paths):
        raise ValueError(f"{len(paths)} models were given for the {len(names)} names {', '.join(names)}")
    device = _device(arguments)
    models = {name: load_pipeline(path, device) for name, path in zip(names, paths, strict=True)}
    for pipeline in models.values():
        pipeline.set_progress_bar_config(disable=True)  # the evaluation has its own
    return models


def _protocol(name: str | None):
    """Return the named protocol; `None` for no name."""
    from ..metrics import PROTOCOLS

    if name not in (None, *PROTOCOLS):
        raise ValueError(f"unknown protocol {name!r}; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS.get(name)


def _data(arguments: argparse.Namespace, pipeline, task: str):
    """Return the videos, and the protocol that they are measured under."""
    from ..evaluation import open_videos, own_protocol, sample_videos

    source = open_videos(arguments.data, arguments.ucf101_splits, arguments.kinetics_csv)
    protocol = _protocol(arguments.protocol)
    if protocol is None:
        data = "/".join(Path(arguments.data).absolute().parts[-2:])
        protocol = own_protocol(pipeline, data, arguments.window, task)
    return sample_videos(source, arguments.max_videos, arguments.seed), protocol


def _networks(arguments: argparse.Namespace):
    from ..evaluation import load_networks

    return load_networks(getattr(arguments, "lpips", "none"), arguments.fvd, _device(arguments))


def _print_results(report: dict | None, folder: str) -> dict | None:
    """Print the table and the files written, in the process that has the report, and return it."""
    if report is None:
        return None
    print((Path(folder) / "results.md").read_text(), end="")
    files = sorted(path.name for path in Path(folder).iterdir() if path.is_file() and path.name[0] != ".")
    print(f"wrote {folder}/: {', '.join(files)}", file=sys.stderr)
    return report
