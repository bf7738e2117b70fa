"""The Triton kernels. Import only through `clip_la_kernels.dispatch`: this package needs Triton."""
