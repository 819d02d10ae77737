"""The folder that a training run writes: `recipe.json`, `metrics.jsonl`, checkpoints and models."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration
from PIL import Image
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..atomic_files import atomic_file, hold_folder, remove_folder, write_json, write_text
from .arguments import RunArguments


class RunningMeans:
    """Means of what is measured from one log entry to the next. Sums stay on their device, so that nothing waits for it."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add scalars by name; each has a mean over the calls that named it."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means, also over processes, which must all call this with the same names; reset them."""
        if not self.sums:
            return {}
        means = torch.stack([(total / self.counts[name]).to(accelerator.device) for name, total in self.sums.items()])
        names, self.sums, self.counts = list(self.sums), {}, {}
        return dict(zip(names, accelerator.reduce(means, "mean").tolist(), strict=True))

    def state_dict(self) -> dict:
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


class Progress:
    """What a resumed run needs next to weights, optimizers and the place in the data.

    `step` is that of the next update; `seconds` counts where a run's length is given so.
    """

    def __init__(self):
        self.step = 0
        self.seconds = 0.0
        self.means = RunningMeans()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, "means": self.means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.means.load_state_dict(state["means"])


class RunFolder:
    """Written by the main process; each part is written next to its place and renamed, so that a crash leaves the old.

    Args:
        path: the folder; made if it is missing.
        arguments: the dataclass of the run, written to `recipe.json`.
        accelerator: its trackers, if it has any, get what is logged.
    """

    def __init__(self, path: str, arguments: Any, accelerator: Accelerator):
        self.path, self.accelerator = Path(path), accelerator
        self.claim = ExitStack()  # of `start_run`
        if accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "recipe.json", dataclasses.asdict(arguments))

    def log(self, record: dict[str, Any]) -> None:
        """Print a record, append it to `metrics.jsonl` and give it to the trackers, at the record's `step`."""
        if self.accelerator.is_main_process:
            text = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(text + "\n")
            print(text, flush=True)
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=record.get("step"))

    def save_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write a picture, uint8 (height, width, 3), to `validation/`, and give it to trackers that take pictures."""
        folder = self.path / "validation"
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / f"step-{step:06d}.png") as partial:
            Image.fromarray(picture).save(partial)
        for tracker in self.accelerator.trackers:
            if tracker.name in ("tensorboard", "wandb", "swanlab"):  # the others have no method, or one of another kind
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: picture[None]}, step=step, **layout)

    def save(
        self, model: PreTrainedModel, step: int, checkpoints_total_limit: int, model_ema: PreTrainedModel | None = None
    ) -> None:
        """Write the models, and all that a resumed run needs. Every process must call this.

        Args:
            model: goes to `model/`.
            step: names the checkpoint, `checkpoint-<step>/`.
            checkpoints_total_limit: how many checkpoints are kept, the newest ones.
            model_ema: goes to `model_ema/`.

        Raises:
            OSError: if something cannot be written, such as on a full disk; checkpoints and models stay as they were.
        """
        # the checkpoint comes last: a run that is killed before it is complete makes the models again
        for name, saved in (("model", model), ("model_ema", model_ema)):
            if saved is not None:
                self.replace(name, saved.save_pretrained if self.accelerator.is_main_process else lambda path: None)
        self.replace(f"checkpoint-{step}", self.accelerator.save_state)
        if self.accelerator.is_main_process:
            # those of later steps are left from before the run was taken back to an earlier one
            past = [path for path in self.checkpoints() if _step_of(path) <= step]
            for path in self.checkpoints():
                if path not in past[-checkpoints_total_limit:]:
                    remove_folder(path)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, from the oldest to the newest."""
        return _checkpoints(self.path)

    def resume(self, checkpoint: str = "latest") -> bool:
        """Load a checkpoint; return whether there was one to load.

        Args:
            checkpoint: "latest", or a name such as "checkpoint-500".

        Raises:
            ValueError: if the named checkpoint is missing.
        """
        checkpoints = self.checkpoints()
        if checkpoint != "latest":
            if checkpoint not in [path.name for path in checkpoints]:
                raise ValueError(f"{self.path} has no {checkpoint!r}; there are {[path.name for path in checkpoints]}")
            checkpoints = [self.path / checkpoint]
        if checkpoints:
            self.accelerator.load_state(str(checkpoints[-1]))
        if self.accelerator.is_main_process:
            self._take_back_log(_step_of(checkpoints[-1]) if checkpoints else 0)
        return bool(checkpoints)

    def _take_back_log(self, step: int) -> None:
        """Remove from the log what a killed run wrote after its last checkpoint; it will be logged again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= step))

    def replace(self, name: str, write: Callable[[str], Any]) -> None:
        """Replace a folder by what `write` puts into the folder that it is given. Every process must call this.

        Raises:
            OSError: if it cannot be written; the old folder stays.
        """
        final, new, old = (self.path / (name + suffix) for suffix in ("", ".new", ".old"))
        if self.accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            write(str(new))
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own kinds
            raise OSError(f"{new} could not be written: {error}. What was saved before is still there.") from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                os.replace(final, old)
            os.replace(new, final)
            shutil.rmtree(old, ignore_errors=True)


def claim_run_folder(path: Path) -> ExitStack:
    """Claim a run's folder, and put in order what a killed run left in it.

    Raises: see [`hold_folder`].
    """
    path.mkdir(parents=True, exist_ok=True)
    claim = hold_folder(path)
    for left in path.iterdir():
        if not (match := re.fullmatch(r"(checkpoint-\d+|model|model_ema|adapter)\.(new|old)", left.name)):
            continue
        if match[2] == "old" and not (path / match[1]).exists():  # killed between two renames
            os.replace(left, path / match[1])
        else:
            remove_folder(left)
    return claim


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def start_run(args: RunArguments, name: str, **accelerator_options: Any) -> RunFolder:
    """Return the folder of a run, with the accelerator and the trackers that `report_to` names.

    Args:
        name: of the script; trackers call the project so.

    Raises:
        ValueError: if the folder has checkpoints but the run shall not resume, and for launchers that shard models.
        BlockingIOError: if another run writes into the folder.
    """
    report_to = None if args.report_to == "none" else args.report_to
    project = ProjectConfiguration(args.output_dir, str(Path(args.output_dir) / "tracker"))
    accelerator = Accelerator(log_with=report_to, project_config=project, **accelerator_options)
    kind = accelerator.distributed_type
    if kind != DistributedType.NO and not kind.name.startswith("MULTI_"):
        raise ValueError(f"processes hold whole models: launch without {kind} (train_tokenizer.py shards by --shard_over)")
    path = Path(args.output_dir)
    claim = claim_run_folder(path) if accelerator.is_main_process else ExitStack()
    accelerator.wait_for_everyone()
    if _checkpoints(path) and args.resume_from_checkpoint is None:
        raise ValueError(f"{path} has checkpoints: give --resume_from_checkpoint latest, or another output_dir")
    run = RunFolder(args.output_dir, args, accelerator)
    run.claim = claim
    if report_to:
        entries = dataclasses.asdict(args).items()
        flat = {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in entries}
        accelerator.init_trackers(name, config=flat)
    return run
