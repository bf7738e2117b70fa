"""clip_la: can linear attention replace softmax attention in CLIP-style models?"""

__version__ = "0.1.0"
