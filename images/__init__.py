"""Images: their names, what tags say about GPUs, registries, and the variant for each vendor."""
