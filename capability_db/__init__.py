"""What GPUs can do: models, partitions, and what node objects say of them."""
