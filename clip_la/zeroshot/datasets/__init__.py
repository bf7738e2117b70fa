"""From what a user names to images with labels: class folders, shards, Parquet files."""
