"""`adaptok <verb>`: the pipeline from the command line.

Exit codes: 0, or with one line on standard error 2 for anything that the user can fix, 1 for a bug of ours, and 128 and the
signal's number when it was stopped.
"""

import argparse
import json
import sys
from contextlib import nullcontext, redirect_stdout
from typing import Any

from .. import __version__
from ..checkpoints import DEFAULT_CHECKPOINT, DEFAULT_GENERATORS
from . import evaluate, export, generate, reconstruct, stream
from .common import add_json_option, add_model_options, add_verb, check_arguments, load_pipeline
from .program import run_program, take_debug


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = take_debug(argv)

    def run() -> None:
        parser = build_parser()
        if not argv:
            return parser.print_help()
        arguments = parser.parse_args(argv)
        check_arguments(arguments)
        as_json = getattr(arguments, "json", False)
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            result = arguments.run(arguments)
        if as_json and result is not None:
            print(json.dumps(result, indent=2, allow_nan=False))
        if skipped := (result or {}).get("skipped"):
            names = ", ".join(entry["file"] for entry in skipped)
            raise ValueError(f"{len(skipped)} of {len(skipped) + len(result['files'])} files skipped: {names}")

    return run_program("adaptok", run, debug)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adaptok",
        description="Adaptive, temporally causal video tokens.",
        epilog="`adaptok COMMAND --help` lists a command's options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"adaptok_hf {__version__}")
    parser.add_argument("--debug", action="store_true", help="of every command: show where an error comes from")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=["bash", "zsh", "tcsh"],
        help="print a script that completes commands, options and files (needs shtab)",
    )
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (reconstruct, generate, evaluate, stream, export):
        module.add_commands(verbs)
    verb = add_verb(
        verbs,
        "info",
        "print versions, device and the checkpoint's geometry",
        "info",
        "info --classes          # the names that generate --class takes",
        "info --model figures --json",
    )
    verb.add_argument(
        "--classes",
        action="store_true",
        help=f"print the classes that the model (default: {DEFAULT_GENERATORS}) can generate",
    )
    add_json_option(verb)
    add_model_options(verb)
    verb.set_defaults(run=_info, model=None)
    return parser


class _PrintCompletion(argparse.Action):
    """`--print-completion SHELL`: completion of commands, options and file names, made by shtab."""

    def __call__(self, parser, namespace, shell, option_string=None) -> None:
        try:
            import shtab
        except ImportError as error:
            raise ImportError(f"{option_string} needs shtab: pip install shtab") from error
        parsers = [parser]
        for each in parsers:
            for action in each._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parsers += dict.fromkeys(action.choices.values())
                elif action.type is None and action.choices is None and action.nargs != 0:
                    action.complete = shtab.FILE
        print(shtab.complete(parser, shell))
        parser.exit()


def _info(arguments: argparse.Namespace) -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    model = arguments.model or (DEFAULT_GENERATORS if arguments.classes else DEFAULT_CHECKPOINT)
    pipeline = load_pipeline(model, arguments.device, arguments.dtype)
    if arguments.classes:
        print("\n".join(f"{label:>5}  {name}" for label, name in enumerate(pipeline.class_names)))
        return {"model": model, "classes": pipeline.class_names}
    config, models = pipeline.tokenizer.config, ("tokenizer", "scorer", "router", "ar_model", "fp_model")
    sizes = {name: getattr(pipeline, name).num_parameters() if getattr(pipeline, name) else 0 for name in models}
    info = {
        "adaptok_hf": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "diffusers", "accelerate", "scipy", "numpy", "av")},
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "model": model,
        "image_size": config.image_size,
        "num_frames": config.num_frames,
        "tubelet_size": config.tubelet_size,
        "blocks": config.num_blocks,
        "latents_per_block": config.latents_per_block,
        "codebook_size": config.codebook_size,
        "score_step": pipeline.scorer.config.score_step if pipeline.scorer is not None else None,
        **{f"{name}_parameters": size for name, size in sizes.items()},
        "model_hash": pipeline.model_hash,
    }
    if not arguments.json:
        print("\n".join(f"{name + ':':24}{value}" for name, value in info.items()))
    return info
