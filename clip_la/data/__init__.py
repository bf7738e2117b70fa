"""Image-text pairs: shards on disk, images, captions, the stream of batches, and the tools around them."""
