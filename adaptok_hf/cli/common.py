"""What several commands share: options, and loading the pipeline."""

import argparse
import math
import os
from typing import TYPE_CHECKING, Any

from ..checkpoints import DEFAULT_CHECKPOINT, PACKAGED_CHECKPOINTS
from .program import one_line
from .waiting import is_terminal, waiting

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

MODEL_HELP = f"{', '.join(PACKAGED_CHECKPOINTS)} (in this package), a pipeline's folder, or a Hub id"


# Values of numeric options, from the lowest to the highest. No option takes infinity or NaN.
COUNT = (1, 2**31 - 1)
RANGES = {
    **dict.fromkeys(("videos", "rollouts", "condition_frames", "frames", "max_videos", "max_tokens"), COUNT),
    **dict.fromkeys(("batch_size", "allocation_batch"), COUNT),
    "top_k": (0, COUNT[1]),
    "seed": (0, 2**63 - 1),
    "fps": (0.01, 1000),
    **dict.fromkeys(("temperature", "top_p", "price", "bitrate"), (0, math.inf)),
}


def add_verb(verbs: Any, name: str, summary: str, *examples: str, **options: Any) -> argparse.ArgumentParser:
    """Add a command whose `--help` ends with examples; these are what comes after `adaptok`."""
    epilog = "examples:\n" + "".join(f"  adaptok {example}\n" for example in examples)
    formatter = argparse.RawDescriptionHelpFormatter
    return verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=formatter,
        **options,
    )


def add_json_option(verb: argparse.ArgumentParser) -> None:
    """Add the option by which `main` prints what the command returns, and all else goes to standard error."""
    verb.add_argument("--json", action="store_true", help="print the result as JSON, all else on standard error")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise `ValueError` for a number that makes no sense, before anything is loaded or read."""
    for name, values in vars(arguments).items():
        low, high = RANGES.get(name, (-math.inf, math.inf))
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int | float) and not (low <= value <= high and math.isfinite(value)):
                accepted = f"a number from {low} to {high}" if math.isfinite(high) else "a finite number"
                accepted += ", at least 0" if low == 0 and high == math.inf else ""
                raise ValueError(f"--{name.replace('_', '-')} must be {accepted}, got {value}")
    for budget in getattr(arguments, "budgets", None) or [getattr(arguments, "budget", None)]:
        check_budget(budget)


def check_budget(budget: str | float | None) -> None:
    """Raise `ValueError` unless a budget is a positive number or percentage."""
    from ..allocation.budgets import tokens_per_block

    if budget is not None and not 0 < tokens_per_block(budget, 1) < math.inf:
        raise ValueError(f"--budget must be a positive number of tokens per block or a percentage, got {budget}")


def check_request(request: dict[str, Any]) -> None:
    """Raise `ValueError` for options of an allocation that do not go together."""
    from ..allocation import AllocationRequest

    names = {"allocation": "strategy"}
    AllocationRequest(**{names.get(name, name): value for name, value in request.items()}).choose_strategy(True, True, True)


def check_device(device: str | None) -> str:
    """Return the device to use; raise `ValueError` for one that this machine does not have."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # every backend has its own kind
        raise ValueError(f"the device {device} cannot be used: {one_line(error)}") from error
    return device


def best_dtype(device: str) -> str:
    """Return "bfloat16" for a device that multiplies it in hardware, a CPU by AMX or AVX512-BF16, else "float32"."""
    import torch

    has_bfloat16 = {
        "cpu": lambda: torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported(),
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
    }
    return "bfloat16" if has_bfloat16.get(torch.device(device).type, lambda: False)() else "float32"


def add_model_options(verb: argparse.ArgumentParser, default: str = DEFAULT_CHECKPOINT) -> None:
    verb.add_argument("--model", default=default, metavar="NAME", help=f"{MODEL_HELP} (default: {default})")
    verb.add_argument("--device", help="such as cpu or cuda (default: cuda if there is one)")
    verb.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="float32", help="auto: "
                      "bfloat16 where the hardware multiplies it, float32 elsewhere (default: float32)")  # fmt: skip


def add_batch_size_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips encoded together (default: 8)")


def add_resize_option(verb: argparse.ArgumentParser, tile: bool = False) -> None:
    verb.add_argument(
        "--resize",
        "--resize-mode",
        choices=["crop", "squash"] + ["tile"] * tile,
        help="crop the center square (default), or squeeze the whole picture and restore its proportions in the output"
        + ", or cut it into tiles and keep its size" * tile,
    )


def add_allocation_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of a request; `--help` then lists the strategies, which takes the import of numpy and scipy."""
    group = verb.add_argument_group(
        "allocation", "give one of --budget, --price, --threshold; without, all tokens are kept"
    )
    group.add_argument("--budget", help="average tokens per block (such as 64), or a percentage of all (such as 25%%); the "
                       "most that does not exceed it is spent")  # fmt: skip
    group.add_argument("--exact-budget", action="store_true", help="fail where the blocks cannot spend exactly this budget")
    group.add_argument("--price", type=float, help="loss that a token must save to be kept (strategies quality, search "
                       "and router)")  # fmt: skip
    group.add_argument("--threshold", type=float, help="loss that every block must stay below (strategy threshold)")
    group.add_argument("--allocation", metavar="STRATEGY", help="see below (default for a budget: compared, or joint)")
    group.add_argument("--loss", choices=["rmse", "mse", "psnr", "lpips"], help="what compared and search measure of a "
                       "block (default: rmse)")  # fmt: skip
    format_help = verb.format_help
    verb.format_help = lambda: f"{format_help()}\nstrategies:\n{_list_of_strategies()}"


def allocation_request(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the request as arguments of the pipeline; raise `ValueError` for options that do not go together."""
    request = {name: getattr(arguments, name) for name in ("budget", "price", "threshold", "allocation")}
    if arguments.exact_budget and arguments.budget is None:
        raise ValueError("--exact-budget needs --budget")
    request |= {"rounding": "exact"} if arguments.exact_budget else {}
    request |= {"loss": arguments.loss} if arguments.loss else {}
    check_request(request)
    if arguments.loss == "lpips":
        from ..metrics.lpips_network import lpips_of_blocks

        request["loss"] = lpips_of_blocks()
    return request


def add_sampling_options(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("sampling", "default: the generation configuration in the model's folder")
    group.add_argument("--temperature", type=float, help="0 takes the most probable token")
    group.add_argument("--top-k", type=int, metavar="K", help="sample from the K most probable tokens; 0: from all")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the fewest tokens with this probability in sum"
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help="the most tokens to write for a clip")
    group.add_argument("--allowed-lengths", type=_lengths, metavar="N,N", help="tokens that a block may have, of a "
                       "generator with length tokens: 64,128 for all, or 512/128/32,64/32,64 for each")  # fmt: skip
    group.add_argument("--budget", help=argparse.SUPPRESS)  # the old name, which means an average now


def add_seed_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same videos (default: 0)")


def sampling_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generate`; raise `ValueError` for `--budget`, the average of an allocation."""
    if arguments.budget is not None:
        raise ValueError(
            f"--budget {arguments.budget} is no option of generation: give --max-tokens, a cap on a clip's tokens"
        )
    names = ("temperature", "top_k", "top_p", "max_tokens", "allowed_lengths")
    return {name: getattr(arguments, name) for name in names}


def _lengths(text: str) -> list[int] | list[list[int]]:
    try:
        blocks = [[int(length) for length in block.split(",")] for block in text.split("/")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected numbers such as 64,128 or 512/128/32,64/32,64") from error
    return blocks if len(blocks) > 1 else blocks[0]


def load_pipeline(model: str | None = None, device: str | None = None, dtype: str = "float32") -> "AdapTokPipeline":
    """Load a pipeline for a command: progress only on a terminal, none of the libraries'.

    Args:
        dtype: a name, or "auto" for `best_dtype`, and not for the type in which the weights are stored.

    Raises:
        ValueError: with one line, whatever the libraries raise.
    """
    with waiting(f"loading {model or DEFAULT_CHECKPOINT}"):
        from .. import AdapTokPipeline  # the public name, which is imported with the garbage collector off

        quiet_libraries()
        device = check_device(device)
        dtype = best_dtype(device) if dtype == "auto" else dtype
        try:
            pipeline = AdapTokPipeline.from_pretrained(model, dtype=dtype).to(device)
        except Exception as error:  # diffusers, safetensors and torch each raise their own kind
            known = "" if os.path.exists(model or ".") else f" (in this package: {', '.join(PACKAGED_CHECKPOINTS)})"
            raise ValueError(f"cannot load the model {model}{known}: {one_line(error)}") from error
    pipeline.set_progress_bar_config(disable=not is_terminal())
    return pipeline


def quiet_libraries() -> None:
    """Switch off the progress bars of transformers and diffusers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()


def _list_of_strategies() -> str:
    from ..allocation import STRATEGIES

    return "".join(f"  {name:<10} {row.summary}\n" for name, row in STRATEGIES.items())
