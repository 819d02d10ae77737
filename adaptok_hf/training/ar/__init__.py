"""Training of the generator, and the tokens that it is trained on."""

from ..extras import require

require("datasets")
