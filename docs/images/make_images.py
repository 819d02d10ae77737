"""Makes the pictures of the README with the shipped checkpoints: `python docs/images/make_images.py [--extra CLIP]`.

Those of generation and prediction are the contact sheets of the commands next to them in the README.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from adaptok_hf import AdapTokPipeline
from adaptok_hf.cli.main import main as adaptok
from adaptok_hf.cli.reports import write_report

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "surfing.mp4"
COMMANDS = {
    "generated": "generate --class surfing --class juggling --class cartwheeling --videos 1",
    "predicted": f"predict {EXAMPLE} --condition-frames 5 --videos 2",
}


def label_columns(strip: Image.Image, labels: list[str]) -> Image.Image:
    """Return the picture with a label over each of its columns, which are equally wide."""
    height, width = 20, strip.width // len(labels)
    labeled = ImageOps.expand(strip, (0, height, 0, 0), fill="white")
    for column, label in enumerate(labels):
        position = (column + 0.5) * width, height / 2
        ImageDraw.Draw(labeled).text(position, label, fill="black", anchor="mm", font=ImageFont.load_default(13))
    return labeled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", help="a second video for the strip of budgets")
    parser.add_argument("--frame", type=int, default=30, help="frame that is shown")
    arguments = parser.parse_args()
    pipeline = AdapTokPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    budgets, rows = (256, 128, 64, 32, 16), []
    for video in filter(None, (EXAMPLE, arguments.extra)):
        outputs = [pipeline.reconstruct(video, budget=budget, output_type="uint8") for budget in budgets]
        row = [outputs[0].original[0, arguments.frame], *(output.frames[0, arguments.frame] for output in outputs)]
        rows.append(np.concatenate(row, axis=1))
    strip = label_columns(Image.fromarray(np.concatenate(rows)), ["original", *(f"{budget} tokens" for budget in budgets)])
    strip.save(HERE / "budgets.png", optimize=True)
    with tempfile.TemporaryDirectory() as folder:
        output = pipeline.reconstruct(EXAMPLE, budget=32, output_type="uint8")
        write_report(Path(folder) / "report", output, pipeline, {"budget": 32})
        (Path(folder) / "report" / "tokens.png").replace(HERE / "tokens.png")
        for name, command in COMMANDS.items():
            if adaptok([*command.split(), "--output", f"{folder}/{name}"]) != 0:
                raise SystemExit(f"failed: adaptok {command}")
            (Path(folder) / name / "contact_sheet.png").replace(HERE / f"{name}.png")


if __name__ == "__main__":
    main()
