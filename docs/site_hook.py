"""Lays the site out as the repository is, so that a relative link leads to the same file on both (see mkdocs.yml).

mkdocs knows docs/ only. Here its files go to docs/ of the site, next to the pages that lie elsewhere and
whatever file of the repository a page links to.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "model_cards/README.md", "space_app/README.md",
          "training_scripts/README.md")  # fmt: skip
_LINK = re.compile(r"\]\(([^)#:\s]+)[)#]")  # those with a scheme have a colon


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    own = [file for file in files if file.src_dir == config.docs_dir]
    laid_out = Files([file for file in files if file.src_dir != config.docs_dir])  # the theme's
    waiting = [*_PAGES, *(f"docs/{file.src_uri}" for file in own)]
    while waiting:
        path = waiting.pop()
        if path in laid_out.src_uris:
            continue
        laid_out.append(File.generated(config, path, abs_src_path=str(root / path)))
        if path.endswith(".md"):
            waiting += _linked_files(root, path)
    return laid_out


def _linked_files(root: Path, page: str) -> list[str]:
    """Files of the repository, relative to its root. Links that lead nowhere are left to mkdocs' own complaint."""
    targets = [(root / PurePosixPath(page).parent / link).resolve() for link in _LINK.findall((root / page).read_text())]
    return [target.relative_to(root).as_posix() for target in targets if target.is_file() and root in target.parents]
