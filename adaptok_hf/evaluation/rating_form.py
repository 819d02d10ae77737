"""A form for human ratings as in the paper's Table F: videos without their system's name, 1 (worst) to 10 (best)."""

import csv
import html
import json
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data import VideoFiles
from .clip_chunks import open_videos
from .part_files import write_json, write_text

_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Video ratings</title>
<style>body{{font-family:sans-serif;max-width:60rem;margin:2rem auto}} .item{{display:inline-block;margin:1rem}}
video{{width:256px;image-rendering:auto}} button{{font-size:1rem;padding:.5rem 1rem}}</style>
<h1>How good is each video?</h1>
<p>1 is worst, 10 is best. Look at sharpness, natural motion and artefacts. Then press the button and send the file that is
saved.</p>
<label>Your name or number <input id="rater" required></label><div>{items}</div>
<button onclick="save()">Save ratings</button>
<script>
function save() {{
  const rows = [["rater", "item", "rating"]];
  const rater = document.getElementById("rater").value.replace(/[",\\n]/g, " ") || "unknown";
  for (const s of document.querySelectorAll("select")) rows.push([rater, s.name, s.value]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([rows.map(r => r.join(",")).join("\\n") + "\\n"], {{type: "text/csv"}}));
  link.download = "ratings-" + rater + ".csv";
  link.click();
}}
</script>
"""


def write_rating_form(folder: str | Path, systems: Mapping[str, str | Path], num_videos: int = 20, seed: int = 0) -> Path:
    """
    Writes `form.html` (opens in any browser, saves a csv), `form.csv` (the same to fill in by hand) and `key.json`, which
    says which item is of which system and must not be shown to raters.

    Args:
        folder: made if it does not exist; the videos stay where they are and are linked relative to it.
        systems: name -> folder of videos. Items are drawn from the names that all have; where none is common
            (generated videos), from each folder.
        num_videos: of each system.

    Returns:
        The form's path.

    Raises:
        ValueError, OSError: for fewer than 2 systems, or folders without videos.
    """
    if len(systems) < 2:
        raise ValueError(f"a rating compares at least 2 systems, got {len(systems)}")
    folder, rng = Path(folder), random.Random(seed)
    sources = {name: open_videos(path) for name, path in systems.items()}
    common = set.intersection(*({item.key for item in source.items} for source in sources.values()))
    shared = rng.sample(sorted(common), min(num_videos, len(common)))
    chosen = [(name, item) for name, source in sources.items() for item in _choose(source, shared, num_videos, rng)]
    rng.shuffle(chosen)
    key, blocks, rows = {}, [], [["rater", "item", "rating"]]
    folder.mkdir(parents=True, exist_ok=True)
    options = '<option value="">-</option>' + "".join(f"<option>{rating}</option>" for rating in range(1, 11))
    for index, (name, item) in enumerate(chosen):
        label = f"v{index + 1:03d}"
        key[label] = {"system": name, "video": item.key}
        path = html.escape(os.path.relpath(item.video, folder).replace(os.sep, "/"), quote=True)
        video = f'<video src="{path}" controls loop muted></video>'
        blocks.append(f'<div class="item">{video}<br>{label} <select name="{label}">{options}</select></div>')
        rows.append(["", label, ""])
    write_text(folder / "form.html", _PAGE.format(items="\n".join(blocks)))
    write_text(folder / "form.csv", "".join(",".join(row) + "\n" for row in rows))
    write_json(folder / "key.json", key)
    return folder / "form.html"


def _choose(source: VideoFiles, shared: Sequence[str], count: int, rng: random.Random) -> list:
    if shared:
        return [item for item in source.items if item.key in set(shared)]
    return rng.sample(source.items, min(count, len(source.items)))


def summarize_ratings(key: str | Path, filled: Sequence[str | Path]) -> dict[str, dict]:
    """
    Args:
        key: `key.json` of the form.
        filled: csv files with the columns `rater`, `item`, `rating`; empty ratings are left out.

    Returns:
        Of each system `mean`, `deviation` (`None` for one rating), `ratings` and `raters`.

    Raises:
        ValueError: for unknown items, ratings that are not 1 to 10, two ratings of an item by one rater, or none at all.
    """
    items, found, seen = json.loads(Path(key).read_text()), {}, set()
    for path in filled:
        with open(path, newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                if not (row.get("rating") or "").strip():
                    continue
                item, text = row.get("item"), row["rating"].strip()
                if item not in items:
                    raise ValueError(f"{path}, line {line}: unknown item {item!r}")
                try:
                    rating = float(text)
                except ValueError:
                    rating = 0.0
                if not 1 <= rating <= 10:
                    raise ValueError(f"{path}, line {line}: a rating is a number from 1 to 10, got {text!r}")
                if (row.get("rater"), item) in seen:
                    raise ValueError(f"{path}, line {line}: {row.get('rater')!r} has rated {item} before")
                seen.add((row.get("rater"), item))
                found.setdefault(items[item]["system"], []).append((row.get("rater"), rating))
    if not found:
        raise ValueError("there are no ratings in these files")
    return {
        system: {
            "mean": statistics.fmean(rating for _, rating in ratings),
            "deviation": statistics.stdev(rating for _, rating in ratings) if len(ratings) > 1 else None,
            "ratings": len(ratings),
            "raters": len({rater for rater, _ in ratings}),
        }
        for system, ratings in sorted(found.items())
    }
