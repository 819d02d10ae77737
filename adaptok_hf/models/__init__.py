"""Models and configurations, and all that these files import: a Hub repository with remote code copies them."""
