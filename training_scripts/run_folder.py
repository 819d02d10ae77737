"""The folder that a training run writes: `recipe.json`, `metrics.jsonl`, `checkpoint/` and `model/`."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel


class RunFolder:
    """Written by the main process only; folders are made beside and renamed, so that a crash leaves the old ones."""

    def __init__(self, path: str, arguments: Any, accelerator: Accelerator):
        self.path, self.accelerator = Path(path), accelerator
        if accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "recipe.json").write_text(json.dumps(dataclasses.asdict(arguments), indent=2) + "\n")

    def log(self, record: dict[str, Any]) -> None:
        """Prints a record and appends it to `metrics.jsonl`."""
        if self.accelerator.is_main_process:
            text = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(text + "\n")
            print(text, flush=True)

    def save(self, model: PreTrainedModel) -> None:
        """Writes `checkpoint/`, all that a resumed run needs (every process must call this), and `model/`."""
        self._replace("checkpoint", self.accelerator.save_state)
        self._replace("model", lambda path: self.accelerator.is_main_process and model.save_pretrained(path))

    def resume(self) -> bool:
        """Loads `checkpoint/` if there is one."""
        checkpoint, old = self.path / "checkpoint", self.path / "checkpoint.old"
        if self.accelerator.is_main_process and old.exists() and not checkpoint.exists():
            os.replace(old, checkpoint)  # killed between the two renames of `_replace`
        self.accelerator.wait_for_everyone()
        found = checkpoint.exists()
        if found:
            self.accelerator.load_state(str(checkpoint))
        return found

    def _replace(self, name: str, write) -> None:
        final, new, old = (self.path / (name + suffix) for suffix in ("", ".new", ".old"))
        if self.accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        write(str(new))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                os.replace(final, old)
            os.replace(new, final)
            shutil.rmtree(old, ignore_errors=True)
