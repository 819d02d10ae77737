"""Labels for routers, and their training."""
