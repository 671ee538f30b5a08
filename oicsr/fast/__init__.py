"""The passes of `oicsr.reference` over all weights of a model at once, at the speed of memory.

`layout` says where the energy of every slice goes, and `table` plans the work once for the shapes of a model. `passes`
runs it: by Triton kernels on CUDA (`tiles`, `kernels`), by PyTorch operations on blocks that fit a core's cache
anywhere else (`blocks`), and one axis at a time for weights of an unusual kind. `autograd` makes the energies
differentiable, inside `torch.compile` too.
"""
