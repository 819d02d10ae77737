"""`adaptok evaluate ...` and `adaptok metrics ...`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

_STRATEGIES = ("fixed", "bithr", "bidelta", "ipal", "joint", "quality", "threshold", "measured")


def add_commands(verbs: Any) -> None:
    """Registers both commands with the parser of `adaptok`."""
    verb = verbs.add_parser("evaluate", help="measure a model over videos: numbers with intervals, tables, plots")
    tasks = verb.add_subparsers(title="tasks", required=True, metavar="TASK")

    task = tasks.add_parser("reconstruction", help="budgets x strategies: PSNR, SSIM, LPIPS, FVD, bits")
    _add_data(task, window="all")
    task.add_argument("--model", action="append", metavar="FOLDER", help="pipeline folder or Hub id; may be repeated")
    task.add_argument(
        "--budgets", nargs="+", default=["6.25%", "12.5%", "25%", "50%", "100%"], metavar="B",
        help="average tokens per block, or percentages such as 25%% (default: 6.25%% 12.5%% 25%% 50%% 100%%)",
    )  # fmt: skip
    task.add_argument(
        "--strategies", nargs="+", default=["fixed", "joint"], metavar="S",
        help=f"of {', '.join(_STRATEGIES)} (default: fixed joint)",
    )  # fmt: skip
    task.add_argument(
        "--allocation-batch", type=int, nargs="+", default=[64], metavar="N",
        help="videos whose clips share a budget in bithr, bidelta, ipal, joint, measured (default: 64)",
    )  # fmt: skip
    task.add_argument("--ipal-budgets", choices=["equal", "published"], default="equal", help="per block position")
    task.add_argument("--fvd-budgets", nargs="+", metavar="B", help="measure FVD at these budgets only")
    task.add_argument(
        "--scorer-loss", choices=["rmse", "l1", "lpips"], help="compare the scorer with (default: its target)"
    )
    task.add_argument("--no-plots", action="store_true", help="numbers only")
    _add_running(task)
    task.set_defaults(run=_reconstruction)

    task = tasks.add_parser("generation", help="generated videos of classes against real ones: FVD, tokens per class")
    _add_data(task, window="random")
    task.add_argument("--model", metavar="FOLDER", help="pipeline folder or Hub id (default: the shipped checkpoint)")
    task.add_argument("--videos", type=int, default=256, metavar="N", help="to generate (default: 256)")
    task.add_argument("--class", dest="classes", action="append", metavar="CLASS", help="name or id (default: all)")
    task.add_argument("--guidance", type=float, metavar="SCALE", help="classifier-free guidance (default: the protocol's)")
    task.add_argument(
        "--classifier-videos", metavar="DATA",
        help="labelled real videos, other than data, that a small classifier learns from: adds its accuracy",
    )  # fmt: skip
    task.add_argument(
        "--classifier-features", choices=["pixels", "network"], default="pixels",
        help="what it sees: small pictures (quick), or features of FVD's network (default: pixels)",
    )  # fmt: skip
    _add_drawing(task)
    _add_running(task)
    task.set_defaults(run=_generation)

    task = tasks.add_parser("prediction", help="predicted frames against what came: FVD, PSNR over the frames")
    _add_data(task, window="first")
    task.add_argument("--model", metavar="FOLDER", help="pipeline folder or Hub id (default: the shipped checkpoint)")
    task.add_argument("--condition-frames", type=int, metavar="N", help="given (default: the protocol's, or 5)")
    _add_drawing(task)
    _add_running(task)
    task.set_defaults(run=_prediction)

    verb = verbs.add_parser("metrics", help="network weights of metrics; videos of other systems")
    tasks = verb.add_subparsers(title="tasks", required=True, metavar="TASK")
    task = tasks.add_parser("fetch", help="get the true weights of I3D and LPIPS, and verify them")
    task.add_argument("--what", nargs="+", metavar="NAME", help="i3d_kinetics400, lpips_vgg, lpips_alex (default: all)")
    task.set_defaults(run=_fetch)
    task = tasks.add_parser("compare", help="PSNR, SSIM, LPIPS of videos with the same name, FVD of the sets")
    task.add_argument("real", help="a folder of videos, a video, or a csv manifest")
    task.add_argument("fake", help="the same kind")
    task.add_argument("-o", "--output", metavar="FILE", help="write the result as JSON, too")
    task.add_argument("--window", choices=["first", "all"], default="first", help="clips of a video (default: first)")
    task.add_argument("--frames", type=int, default=16, metavar="N", help="of a clip (default: 16)")
    task.add_argument("--size", type=int, metavar="PIXELS", help="square that both are made (default: FAKE's short side)")
    _add_networks(task)
    task.set_defaults(run=_compare)


def _add_data(task: argparse.ArgumentParser, window: str) -> None:
    task.add_argument("data", help="a folder of videos (sub-folders are classes), or a csv manifest with a column 'path'")
    task.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for results; a killed run goes on there")
    task.add_argument("--protocol", metavar="NAME", help="a named protocol (default: one of your own from these options)")
    task.add_argument(
        "--window", choices=["first", "random", "all"], default=window, help=f"clips of a video (default: {window})"
    )
    task.add_argument("--max-videos", type=int, metavar="N", help="of the data")


def _add_drawing(task: argparse.ArgumentParser) -> None:
    task.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    task.add_argument("--top-k", type=int, metavar="K")
    task.add_argument("--top-p", type=float, metavar="P")
    task.add_argument("--budget", type=float, help="the most tokens to write, as an average per block")


def _add_networks(task: argparse.ArgumentParser) -> None:
    task.add_argument("--lpips", choices=["vgg", "alex", "none"], default="vgg", help="its network (default: vgg)")
    task.add_argument("--no-fvd", action="store_true", help="leave FVD out (I3D takes seconds per clip on a CPU)")
    task.add_argument("--device", help="such as cpu or cuda (default: cuda if there is one)")


def _add_running(task: argparse.ArgumentParser) -> None:
    _add_networks(task)
    task.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips at once (default: 8)")
    task.add_argument("--seed", type=int, default=0)


def _reconstruction(arguments: argparse.Namespace) -> None:
    from ..evaluation import draw_reconstruction, evaluate_reconstruction

    _quiet()
    names = arguments.model or [None]
    models = {_label(name, names): _load(name, arguments.device) for name in names}
    first = next(iter(models.values()))
    source, protocol = _data(arguments, first, "reconstruction")
    networks = _networks(arguments)
    report = evaluate_reconstruction(
        models,
        source,
        protocol,
        arguments.output,
        strategies=arguments.strategies,
        budgets=arguments.budgets,
        batches=arguments.allocation_batch,
        ipal_budgets=arguments.ipal_budgets,
        networks=networks,
        fvd_budgets=arguments.fvd_budgets,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    if report is None:
        return
    if not arguments.no_plots:
        loss = arguments.scorer_loss
        draw_reconstruction(arguments.output, report, first, source, protocol, networks.lpips, loss)
    _tell(arguments.output)


def _generation(arguments: argparse.Namespace) -> None:
    import dataclasses

    from ..evaluation import evaluate_generation, open_videos

    _quiet()
    pipeline = _load(arguments.model, arguments.device)
    source, protocol = _data(arguments, pipeline, "generation")
    if arguments.guidance is not None:
        protocol = dataclasses.replace(protocol, guidance_scale=arguments.guidance)
    report = evaluate_generation(
        pipeline,
        source,
        protocol,
        arguments.output,
        num_videos=arguments.videos,
        classes=arguments.classes,
        networks=_networks(arguments, lpips="none"),
        classifier_source=open_videos(arguments.classifier_videos) if arguments.classifier_videos else None,
        classifier_features=arguments.classifier_features,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        drawing=_drawing(arguments),
        model_name=_label(arguments.model, [arguments.model]),
    )
    if report is not None:
        _tell(arguments.output)


def _prediction(arguments: argparse.Namespace) -> None:
    import dataclasses

    from ..evaluation import evaluate_prediction

    _quiet()
    pipeline = _load(arguments.model, arguments.device)
    source, protocol = _data(arguments, pipeline, "prediction")
    given = arguments.condition_frames or protocol.num_condition_frames or 5
    report = evaluate_prediction(
        pipeline,
        source,
        dataclasses.replace(protocol, num_condition_frames=given),
        arguments.output,
        networks=_networks(arguments),
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        drawing=_drawing(arguments),
        model_name=_label(arguments.model, [arguments.model]),
    )
    if report is not None:
        _tell(arguments.output)


def _fetch(arguments: argparse.Namespace) -> None:
    from ..metrics import NETWORKS, fetch_network_weights
    from ..metrics.network_weights import cache_folder

    print(f"cache: {cache_folder()}")
    unverified = []
    for record in fetch_network_weights(arguments.what or NETWORKS):
        told = "downloaded now" if record.downloaded else "was there"
        checked = "verified" if record.verified else "NOT the weights that this package knows"
        print(f"{record.name}: {record.path.name}, {told}; from {record.source}; sha256 {record.sha256}: {checked}")
        unverified += [] if record.verified else [record.name]
    if unverified:
        raise ValueError(f"the weights of {', '.join(unverified)} could not be verified; delete them and fetch again")


def _compare(arguments: argparse.Namespace) -> None:
    from ..evaluation import compare_videos
    from ..evaluation.part_files import write_json

    result = compare_videos(
        arguments.real,
        arguments.fake,
        networks=_networks(arguments),
        window=arguments.window,
        num_frames=arguments.frames,
        image_size=arguments.size,
    )
    if arguments.output:
        write_json(Path(arguments.output), _finite(result))
    print(json.dumps({key: value for key, value in _finite(result).items() if key != "pairs"}, indent=1, allow_nan=False))


def _finite(result: dict) -> dict:
    """JSON has no infinity: the PSNR of identical clips is null among the pairs."""
    pairs = [{k: None if v == float("inf") else v for k, v in pair.items()} for pair in result["pairs"]]
    return result | {"pairs": pairs}


def _quiet() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()


def _load(name: str | None, device: str | None):
    import torch

    from ..pipelines.pipeline_adaptok import AdapTokPipeline

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        pipeline = AdapTokPipeline.from_pretrained(name).to(device)
    except Exception as error:  # diffusers, safetensors and torch each raise their own kind
        raise ValueError(f"cannot load the model {name}: {' '.join(str(error).split())}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _label(name: str | None, names: list) -> str:
    """Names a model in tables and files: the last part of its path, the whole of it where two end alike."""
    if name is None:
        return "shipped"
    last = Path(name).name or str(name)
    alike = [other for other in names if other is not None and Path(other).name == Path(name).name]
    return last if len(alike) == 1 else str(name).strip("/").replace("/", "_")


def _data(arguments: argparse.Namespace, pipeline, task: str):
    """The videos, and the protocol that they are measured under."""
    from ..evaluation import draw_videos, open_videos, own_protocol
    from ..metrics import PROTOCOLS
    from .reports import check_folder

    check_folder(arguments.output)
    source = open_videos(arguments.data)
    if arguments.protocol is None:
        data = "/".join(Path(arguments.data).absolute().parts[-2:])
        protocol = own_protocol(pipeline, data, arguments.window, task)
    elif arguments.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {arguments.protocol!r}; known are {', '.join(PROTOCOLS)}")
    else:
        protocol = PROTOCOLS[arguments.protocol]
    return draw_videos(source, arguments.max_videos, arguments.seed), protocol


def _networks(arguments: argparse.Namespace, lpips: str | None = None):
    import torch

    from ..evaluation import load_networks

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_networks(lpips or arguments.lpips, not arguments.no_fvd, device)


def _drawing(arguments: argparse.Namespace) -> dict:
    return {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "budget")}


def _tell(folder: str) -> None:
    print((Path(folder) / "results.md").read_text(), end="")
    files = sorted(path.name for path in Path(folder).iterdir() if path.is_file())
    print(f"wrote {folder}/: {', '.join(files)}", file=sys.stderr)
