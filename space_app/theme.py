"""The look of the Space: amber for what adapts, slate blue for what does not, on paper or on ink."""

from pathlib import Path

import gradio as gr
from gradio.themes.utils.colors import Color
from gradio.themes.utils.fonts import LocalFont

_FOLDER = Path(__file__).parent

# The badge of an error leaves with its message. Not in style.css, whose rules gradio moves below a container of its own.
_BADGE = "<style>body:not(:has([data-testid=toast-body])) .wrap:has(> .error) { display: none !important; }</style>"

_AMBER = Color(
    "#fff8ec", "#ffefd0", "#ffdd9f", "#ffc766", "#ffb03b", "#f0962a", "#cc7416", "#a25812", "#7d4413", "#5f3511", "#371c07"
)  # fmt: skip
_SLATE = Color(
    "#f1f5fb", "#e2eaf5", "#c5d4ea", "#9db5d8", "#7893c2", "#5676a8", "#435f8c", "#374d71", "#2c3d59", "#212e43", "#141d2b"
)  # fmt: skip
_PAPER_TO_INK = Color(
    "#faf9f6", "#f2f0ea", "#e4e1d8", "#cdc9be", "#9b9a95", "#6b6d74", "#4f535d", "#373c47", "#232832", "#171b23", "#0e1117"
)  # fmt: skip


def build_theme() -> gr.themes.Base:
    """Fonts come with gradio; nothing is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue=_AMBER,
        secondary_hue=_SLATE,
        neutral_hue=_PAPER_TO_INK,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        # the semi-bold files that come with gradio lack most letters
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    )
    light_and_dark = {
        "body_background_fill": ("*neutral_50", "*neutral_950"),
        "background_fill_primary": ("white", "*neutral_900"),
        "background_fill_secondary": ("*neutral_50", "*neutral_950"),
        "body_text_color": ("#1b1f28", "#eceae4"),
        "body_text_color_subdued": ("*neutral_500", "*neutral_400"),
        "border_color_primary": ("*neutral_200", "#2a303b"),
        "block_background_fill": ("white", "*neutral_900"),
        "block_border_color": ("*neutral_200", "#2a303b"),
        "block_label_background_fill": ("*block_background_fill", "*block_background_fill"),
        "block_label_text_color": ("*neutral_600", "*neutral_300"),
        "input_background_fill": ("*neutral_50", "*neutral_950"),
        "input_border_color": ("*neutral_300", "#39404d"),
        "slider_color": ("*primary_500", "*primary_400"),
        "button_primary_background_fill": ("*primary_400", "*primary_400"),
        "button_primary_background_fill_hover": ("*primary_300", "*primary_300"),
        "button_primary_text_color": ("#231402", "#231402"),
        "button_primary_border_color": ("*primary_400", "*primary_400"),
        "button_secondary_background_fill": ("transparent", "transparent"),
        "button_secondary_border_color": ("*neutral_300", "#39404d"),
        "link_text_color": ("*primary_700", "*primary_300"),
    }
    values = {name: light for name, (light, _) in light_and_dark.items()}
    values |= {f"{name}_dark": dark for name, (_, dark) in light_and_dark.items()}
    return theme.set(
        block_label_border_width="0px",
        block_title_text_weight="500",
        button_border_width="1px",
        color_accent="*primary_600",
        **values,
    )


def page_options() -> dict[str, str | gr.themes.Base]:
    """Theme, style and script, as `Blocks.launch` takes them."""
    script = (_FOLDER / "player.js").read_text()
    head = f"<script>{script}</script>{_BADGE}"
    return {"theme": build_theme(), "css": (_FOLDER / "style.css").read_text(), "head": head}
