"""From what a user names to pictures with labels: class folders, shards, Parquet files."""
