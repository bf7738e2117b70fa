"""Webdataset shards: where they are, how they are read and written, what can be wrong with them."""
