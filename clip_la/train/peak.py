"""The arithmetic that GPUs are sold for, which a run's own is compared with: model FLOPs utilisation."""

import torch

# Dense products of bfloat16 a second, from the makers' data sheets; the longest name that a device's begins with or
# holds counts.
BFLOAT16_PEAK = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
# TensorFloat-32, which fast_matmul lets float32 products use, has half the rate.
FLOAT32_SHARE = 0.5


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Products and sums a second of one device, counted as 2 a multiply-add; None for one that is not in the table."""
    known = [name for name in BFLOAT16_PEAK if name in device_name]
    if not known:
        return None
    peak = BFLOAT16_PEAK[max(known, key=len)]
    return peak if dtype == torch.bfloat16 else peak * FLOAT32_SHARE
