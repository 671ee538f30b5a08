"""One training: the loop, CUDA graphs, and batches shared by several processes."""
