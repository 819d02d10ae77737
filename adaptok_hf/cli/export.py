"""`adaptok export` and `adaptok card`: repositories for the Hub, and their model cards."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_commands(verbs: Any) -> None:
    """Registers the commands with the parser of `adaptok`."""
    verb = verbs.add_parser("export", help="write a repository that loads without this package, and upload it to the Hub")
    _add_model(verb)
    verb.add_argument("destination", help="folder to write; must not exist or be empty")
    verb.add_argument("--plain-llama", action="store_true", help="of a rope generator: a stock Llama, no code")
    _add_card(verb)
    verb.add_argument("--push-to-hub", metavar="REPO", help="upload to this model repository, made if there is none")
    verb.add_argument("--private", action="store_true", help="make that repository a private one")
    verb.add_argument("--dry-run", action="store_true", help="say what would be written and uploaded; no network, no token")
    verb.set_defaults(run=_export)

    verb = verbs.add_parser("card", help="write a model card from a model's configuration and measured results")
    _add_model(verb)
    verb.add_argument("-o", "--output", help="file (default: standard output)")
    verb.add_argument("--repository", metavar="REPO", help="what the usage lines load (default: MODEL's last part)")
    _add_card(verb)
    verb.set_defaults(run=_card)


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", help="folder of a pipeline or a model, Hub id, 'shipped' or 'detailed'")
    verb.add_argument("--part", help="of a pipeline: tokenizer, scorer, ar_model or fp_model (default: all of it)")


def _add_card(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("card")
    group.add_argument(
        "--release",
        help="who trained it on what: shipped, detailed, original (the authors' weights) or a TOML file of that form",
    )
    group.add_argument("--results", nargs="+", default=[], metavar="FILE", help="results.json of 'adaptok evaluate'")
    group.add_argument("--license", metavar="ID", help="the weights' licence by the Hub's name, such as mit")


def _export(arguments: argparse.Namespace) -> None:
    from ..hub.card import read_report
    from ..hub.export import export_repository

    _quiet()
    report = export_repository(
        arguments.model,
        arguments.destination,
        part=arguments.part,
        plain_llama=arguments.plain_llama,
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

    _quiet()
    folder = find_model(arguments.model, arguments.part)
    name = "/".join(part for part in (arguments.model, arguments.part) if part)
    card = render_card(
        *read_configs(folder),
        repository=arguments.repository or Path(name).name,
        release=read_release(arguments.release, folder),
        reports=[read_report(path) for path in arguments.results],
        weights_license=arguments.license,
    )
    if arguments.output is None:
        print(card)
    else:
        _write(Path(arguments.output), str(card))
        print(f"wrote {arguments.output}", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    """Beside, then renamed."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _quiet() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
