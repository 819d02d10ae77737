"""What several commands share: options, and loading the pipeline."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..checkpoints import DEFAULT_CHECKPOINT, PACKAGED_CHECKPOINTS

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

MODEL_HELP = f"{', '.join(PACKAGED_CHECKPOINTS)} (in this package), a pipeline's folder, or a Hub id"


def add_model_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model", default=DEFAULT_CHECKPOINT, metavar="NAME", help=f"{MODEL_HELP} (default: {DEFAULT_CHECKPOINT})"
    )
    verb.add_argument("--device", help="such as cpu or cuda (default: cuda if there is one)")
    verb.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")


def add_batch_size_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips encoded together (default: 8)")


def add_resize_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--resize",
        choices=["crop", "squash"],
        help="crop the center square (default), or squeeze the whole picture and restore its proportions in the output",
    )


def add_allocation_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of a request; `--help` then lists the strategies, which takes the import of numpy and scipy."""
    group = verb.add_argument_group(
        "allocation", "give one of --budget, --price, --threshold; without, all tokens are kept"
    )
    group.add_argument("--budget", help="average tokens per block (such as 64), or a percentage of all (such as 25%%)")
    group.add_argument("--price", type=float, help="loss that a token must save to be kept (strategy quality)")
    group.add_argument("--threshold", type=float, help="loss that every block must stay below (strategy threshold)")
    group.add_argument("--allocation", metavar="STRATEGY", help="see below (default: joint for a budget)")
    format_help = verb.format_help
    verb.format_help = lambda: f"{format_help()}\nstrategies:\n{_list_of_strategies()}"


def allocation_request(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("budget", "price", "threshold", "allocation")}


def add_sampling_options(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("sampling", "default: the generation configuration in the model's folder")
    group.add_argument("--temperature", type=float, help="0 takes the most probable token")
    group.add_argument("--top-k", type=int, metavar="K", help="sample from the K most probable tokens; 0: from all")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the fewest tokens with this probability in sum"
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help="the most tokens to write for a clip")
    group.add_argument("--budget", help=argparse.SUPPRESS)  # the old name, which means an average now


def add_seed_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same videos (default: 0)")


def sampling_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generate`; raise `ValueError` for `--budget`, the average of an allocation."""
    if arguments.budget is not None:
        raise ValueError(
            f"--budget {arguments.budget} is no option of generation: give --max-tokens, a cap on a clip's tokens"
        )
    return {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "max_tokens")}


def load_pipeline(model: str | None = None, device: str | None = None, dtype: str = "float32") -> "AdapTokPipeline":
    """Load a pipeline for a command: progress bars only on a terminal, none of the libraries'.

    Raises:
        ValueError: with one line, whatever the libraries raise.
    """
    import torch

    from ..pipelines.pipeline_adaptok import AdapTokPipeline

    quiet_libraries()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        pipeline = AdapTokPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    except Exception as error:  # diffusers, safetensors and torch each raise their own kind
        raise ValueError(f"cannot load the model {model}: {one_line(error)}") from error
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    return pipeline


def quiet_libraries() -> None:
    """Switch off the progress bars of transformers and diffusers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()


def one_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


def _list_of_strategies() -> str:
    from ..allocation import STRATEGIES

    return "".join(f"  {name:<10} {row.summary}\n" for name, row in STRATEGIES.items())
