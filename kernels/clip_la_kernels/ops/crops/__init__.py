"""Crop and resize many images in one launch."""
