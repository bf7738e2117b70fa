"""Linear attention, bidirectional and causal. The Triton files are imported only through `runtime.dispatch`."""
