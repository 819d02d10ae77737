"""Training of the generator, and the tokens that it is trained on."""

from ..arguments import require

require("datasets")
