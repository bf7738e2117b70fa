"""What is measured: classification, retrieval, linear probes and k-NN."""
