"""`adaptok export` and `adaptok card`: repositories for the Hub and their model cards; `adaptok convert`."""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..checkpoints import ORIGINAL_CHECKPOINTS, PACKAGED_CHECKPOINTS
from .common import MODEL_HELP, add_verb, quiet_libraries
from .outputs import add_overwrite_option, output_file


def add_commands(verbs: Any) -> None:
    """Register the commands with the parser of `adaptok`."""
    verb = add_verb(
        verbs,
        "export",
        "write a repository that loads without this package, and upload it to the Hub",
        "export small my_pipeline/",
        "export small my_tokenizer/ --part tokenizer --push-to-hub me/my-tokenizer --private",
        "export my_pipeline/ my_llama/ --part ar_model --plain-llama --dry-run",
    )
    _add_model(verb)
    verb.add_argument("destination", help="folder to write; must not exist or be empty")
    verb.add_argument("--plain-llama", action="store_true", help="of a rope generator: a stock Llama, no code")
    verb.add_argument(
        "--onnx", action="store_true", help="also write onnx/: encoder, decoder and scorer for runtimes without torch"
    )
    _add_card(verb)
    verb.add_argument("--push-to-hub", metavar="REPO", help="upload to this model repository, created if it does not exist")
    verb.add_argument("--private", action="store_true", help="create that repository as a private one")
    verb.add_argument("--dry-run", action="store_true", help="say what would be written and uploaded; no network, no token")
    verb.set_defaults(run=_export)

    verb = add_verb(
        verbs,
        "card",
        "write a model card from a model's configuration and measured results",
        "card figures --release figures",
        "card my_pipeline/ --release release.toml --results out/results.json -o README.md",
    )
    _add_model(verb)
    verb.add_argument("-o", "--output", help="file (default: standard output)")
    add_overwrite_option(verb)
    verb.add_argument("--repository", metavar="REPO", help="what the usage lines load (default: MODEL's last part)")
    _add_card(verb)
    verb.set_defaults(run=_card)

    verb = add_verb(
        verbs,
        "convert",
        "convert a checkpoint of the original code",
        "convert yeahhhh326/AdapTok-Scorer converted/",
        "convert downloads/tokenizer.pth converted/ --ema 0.999",
        "convert downloads/evatok.pt converted/ --config downloads/evatok.yaml --verify clip.mp4",
        "convert downloads/router.pt converted/ --config downloads/router.yaml --verify clip.mp4",
        "convert downloads/gpt.pt converted/ --config downloads/evatok.yaml --verify clip.mp4",
    )
    verb.add_argument(
        "source",
        help="folder or Hub id (config.json + model.safetensors), or a training checkpoint (.pth); the authors' are "
        + ", ".join(f"{name} ({content})" for name, content in ORIGINAL_CHECKPOINTS.items()),
    )
    verb.add_argument(
        "destination",
        help="folder to write; must not exist or be empty. Generators, and EVATok's routers, can join a converted one",
    )
    verb.add_argument("--ema", type=float, help="take this exponential average from a training checkpoint")
    _add_evatok(verb)
    verb.set_defaults(run=_convert)


def _add_evatok(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("EVATok's checkpoints (.pt)")
    group.add_argument("--config", metavar="YAML", help="the configuration next to the checkpoint; needed")
    group.add_argument("--part", choices=("tokenizer", "ar_model", "fp_model", "router"), help="if no name says it")
    group.add_argument("--names", metavar="JSON", help="our names -> the checkpoint's; a first run writes names.json")
    group.add_argument("--verify", metavar="VIDEO", help="must prove the result, or nothing is written")
    group = verb.add_argument_group("EVATok's tokenizers and routers")
    group.add_argument("--patch-order", metavar="ORDER", help="of patches in linear maps, such as cthw or thwc")
    group.add_argument("--mask-polarity", choices=("sees", "hides"), help="tokenizer: of masks for separate projections")
    group.add_argument(
        "--class-order",
        choices=("first-slowest", "first-fastest", "first-slowest-falling", "first-fastest-falling"),
        help="router: which block's count changes slowest from class to class, and whether counts fall "
        "(default: first-slowest)",
    )
    group.add_argument(
        "--pixel-range",
        choices=("centered", "unit", "signed"),
        help="router: -0.5 to 0.5 (default), 0 to 1, or -1 to 1",
    )
    group = verb.add_argument_group("EVATok's generators")
    group.add_argument(
        "--id-order",
        metavar="IDS",
        help="rows of its tables (default: codes,32,64,128,256,512,classes,null; from frames: ...,separator)",
    )
    group.add_argument("--classes", metavar="FILE", help="names of the classes, one a line (default: UCF-101's, if 101)")
    group.add_argument("--verify-class", metavar="CLASS", help="class of the video; its place by likelihood is reported")
    group.add_argument(
        "--condition-counts", type=int, nargs="+", metavar="N", help="tokens of the given blocks (default: 512 128)"
    )
    group.add_argument(
        "--no-condition-length-tokens",
        dest="condition_length_tokens",
        action="store_const",
        const=False,
        help="the condition is codes alone",
    )


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", help=f"{MODEL_HELP}; or the folder or Hub id of a single model")
    verb.add_argument("--part", help="of a pipeline: tokenizer, scorer, ar_model, fp_model or router (default: all of it)")


def _add_card(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("card")
    group.add_argument(
        "--release",
        help=f"who trained it on what: {', '.join(PACKAGED_CHECKPOINTS)}, original (the authors' weights) or a TOML file",
    )
    group.add_argument("--results", nargs="+", default=[], metavar="FILE", help="results.json of 'adaptok evaluate'")
    group.add_argument("--license", metavar="ID", help="the weights' license by the Hub's name, such as mit")


def _export(arguments: argparse.Namespace) -> None:
    from ..hub.card import read_report
    from ..hub.export import export_repository

    quiet_libraries()
    report = export_repository(
        arguments.model,
        arguments.destination,
        part=arguments.part,
        plain_llama=arguments.plain_llama,
        onnx=arguments.onnx,
        release=arguments.release,
        reports=[read_report(path) for path in arguments.results],
        weights_license=arguments.license,
        push_to_hub=arguments.push_to_hub,
        private=arguments.private,
        dry_run=arguments.dry_run,
    )
    print(report)


def _card(arguments: argparse.Namespace) -> None:
    from ..hub.card import read_configs, read_report, render_card
    from ..hub.export import find_model, read_release

    quiet_libraries()
    output = arguments.output
    with output_file(output, *arguments.results, overwrite=arguments.overwrite) if output else nullcontext():
        folder = find_model(arguments.model, arguments.part)
        card = render_card(
            *read_configs(folder),
            repository=arguments.repository or arguments.part or Path(arguments.model).name,
            release=read_release(arguments.release, folder),
            reports=[read_report(path) for path in arguments.results],
            weights_license=arguments.license,
        )
        if output:
            write_text(output, str(card))
    print(f"wrote {output}" if output else card, file=sys.stderr if output else sys.stdout)


def _convert(arguments: argparse.Namespace) -> None:
    from ..conversion.convert import convert_checkpoint
    from ..conversion.evatok import OPTIONS, convert_evatok

    quiet_libraries()
    names = ("config", "part", "names", "verify", *(name for group in OPTIONS.values() for name in group))
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if Path(arguments.source).suffix != ".pt":
        if options:
            raise ValueError(f"{', '.join(options)}: for checkpoints of EVATok (.pt), got {arguments.source}")
        print(convert_checkpoint(arguments.source, arguments.destination, ema=arguments.ema))
        return
    if arguments.ema is not None or "config" not in options:
        raise ValueError(f"a checkpoint of EVATok (.pt) needs --config and has no --ema, got {arguments.source}")
    print(convert_evatok(arguments.source, arguments.destination, **options))
