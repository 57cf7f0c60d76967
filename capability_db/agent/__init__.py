"""What a node's GPUs are and how they are: read through the vendors' libraries, told as a NodeGPUs status."""
