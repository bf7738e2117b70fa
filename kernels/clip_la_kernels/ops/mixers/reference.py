"""The reference of the mixers beyond plain linear attention: whole matrices of weights, or one token after another.

Slow, clear, differentiable, any floating dtype, layout (B, N, H, D) throughout, as in reference.py. `grid` is (rows,
columns) with `prefix` tokens before it, or None for a causal sequence.
"""

import torch
from torch import Tensor

Grid = tuple[int, int] | None


def _pairs(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bihd,bjhd->bhij", q, k)


def _seen(tokens: int, causal: bool) -> Tensor:
    ones = torch.ones(tokens, tokens, dtype=torch.bool)
    return ones.tril() if causal else ones


def operator_reference(
    fq: Tensor,
    fk: Tensor,
    v: Tensor,
    *,
    over: str,
    weight: str = "none",
    a: float = 0.0,
    eps: float = 1e-6,
    causal: bool = False,
    turned: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """o_i = sum_j A_ij v_j of mapped queries (scaled) and keys, A as in the table of the operator.

    over: none, length, sum, subtract (arXiv 2412.06590), magnitude (arXiv 2507.00698). weight: none or rala (arXiv
    2411.07635; causal: mean query and softmax over the keys seen). turned: mapped and rotated q and k for the
    numerators, if q and k are rotated.
    """
    seen = _seen(v.shape[1], causal)
    n = seen.sum(-1, keepdim=True).to(v.dtype)
    w = seen.to(v.dtype).expand(v.shape[0], v.shape[2], -1, -1)
    if weight == "rala":
        mean_query = torch.stack([fq[:, seen[i]].mean(1) for i in range(v.shape[1])], 1)
        w = _pairs(mean_query, fk).masked_fill(~seen, float("-inf")).softmax(-1) * n
    x = _pairs(*(turned or (fq, fk)))
    z = (w * _pairs(fq, fk)).sum(-1, keepdim=True) / n
    if over == "subtract":
        matrix = w * (1 + x - (w * x).sum(-1, keepdim=True) / n) / n
    elif over == "magnitude":
        matrix = w * ((1 + 1 / (z + eps)) * x - z) / n
    else:
        matrix = w * (a + x)
        if over == "length":
            matrix = matrix / n
        if over == "sum":
            matrix = matrix / (n * (z + a + eps))
    return torch.einsum("bhij,bjhd->bihd", matrix, v)


def block_of(token: int, grid: Grid, prefix: int, side: int, max_tokens: int) -> int:
    """The block of a token: 0 for the prefix if there is one, then blocks by rows; runs of tokens in a sequence."""
    if grid is None:
        return token // -(-max_tokens // (side * side))
    if token < prefix:
        return 0
    row, column = divmod(token - prefix, grid[1])
    block = row // -(-grid[0] // side) * side + column // -(-grid[1] // side)
    return block + (1 if prefix else 0)


def mhla_reference(
    q: Tensor, k: Tensor, v: Tensor, mixture: Tensor, *, grid: Grid, prefix: int, side: int, max_tokens: int
) -> Tensor:
    """Weights M[block i, block j] phi(q_i).phi(k_j), phi = relu + 1e-6, over their sum (arXiv 2601.07832)."""
    tokens = v.shape[1]
    blocks = torch.tensor([block_of(i, grid, prefix, side, max_tokens) for i in range(tokens)])
    weights = _pairs(q.relu() + 1e-6, k.relu() + 1e-6) * mixture[blocks][:, blocks] * _seen(tokens, grid is None)
    return torch.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdim=True), v)


def ttt_reference(q: Tensor, k: Tensor, v: Tensor, inner: Tensor, step: float) -> Tensor:
    """F(q; W - step g / (|g| + 1)), F(x) = (x W1) silu(x W2), g by autograd of -mean F(k - mean k).v / 3, per head.

    inner: (2, H, D, D); |g| is the norm of each column (arXiv 2512.01643, without its convolution).
    """
    out = []
    for sample in range(v.shape[0]):
        weights = inner.clone() if inner.requires_grad else inner.clone().requires_grad_()
        keys = k[sample] - k[sample].mean(0)

        def network(x: Tensor, w: Tensor) -> Tensor:
            first, second = (torch.einsum("nhd,hde->nhe", x, w[i]) for i in (0, 1))
            return first * torch.nn.functional.silu(second)

        loss = -(network(keys, weights) * v[sample]).sum((1, 2)).mean() / 3
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        gradient = gradient / ((gradient.square().sum(-2, keepdim=True) + 1e-12).sqrt() + 1)
        out.append(network(q[sample], weights - step * gradient))
    return torch.stack(out)


def scan_reference(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, step: Tensor | None = None, *, inclusive: bool, reverse: bool
) -> Tensor:
    """One token after another: S = decay S + k v^T, or by the delta rule decay (S - step k (k^T S)) + step k v^T.

    decay: (B, N, H, D) a key feature (arXiv 2312.06635), or (B, N, H, 1) with step (B, N, H, 1) (arXiv 2412.06464).
    o = S^T q after the token's own step, or after its decay alone if not inclusive.
    """
    state = torch.zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3], dtype=v.dtype)
    order = reversed(range(v.shape[1])) if reverse else range(v.shape[1])
    out: dict[int, Tensor] = {}
    for t in order:
        key, value = k[:, t, :, :, None], v[:, t, :, None, :]
        decayed = state = decay[:, t, :, :, None] * state
        own = key * value
        if step is not None:
            rate = step[:, t, :, :, None]
            state = state - rate * key * (key * state).sum(2, keepdim=True)
            own = rate * own
        state = state + own
        out[t] = (q[:, t, :, :, None] * (state if inclusive else decayed)).sum(2)
    return torch.stack([out[t] for t in range(v.shape[1])], 1)


def dynamic_convolution_reference(
    v: Tensor, static: Tensor, squeeze: Tensor, expand: Tensor, *, grid: Grid, prefix: int
) -> Tensor:
    """y_i = sum_t (static + expand silu(squeeze u_i))_t v_{i+t}, one tap at a time; zero for the prefix.

    u_i is the mean of v over the patches (arXiv 2605.26636), in a sequence v_i itself, and t the token and those before
    it (arXiv 2508.15884). v: (B, N, C); static: (C, 1, rows, columns); squeeze: (hidden, C); expand: (taps C, hidden).
    """
    out, (rows, columns) = torch.zeros_like(v), static.shape[2:]
    for i in range(prefix, v.shape[1]):
        source = v[:, i] if grid is None else v[:, prefix:].mean(1)
        hidden = source @ squeeze.T
        kernel = (hidden / (1 + (-hidden).exp()) @ expand.T).view(-1, rows, columns, v.shape[2])
        kernel = kernel + static[:, 0].permute(1, 2, 0)
        for r in range(rows):
            for c in range(columns):
                if grid is None:
                    j = i - (columns - 1) + c
                    inside = j >= 0
                else:
                    row, column = divmod(i - prefix, grid[1])
                    row, column = row + r - rows // 2, column + c - columns // 2
                    inside = 0 <= row < grid[0] and 0 <= column < grid[1]
                    j = prefix + row * grid[1] + column
                if inside:
                    out[:, i] = out[:, i] + kernel[:, r, c] * v[:, j]
    return out


def window_reference(q: Tensor, k: Tensor, v: Tensor, *, grid: Grid, prefix: int, side: int) -> Tensor:
    """Softmax over the keys of each token's window and the prefix; prefix rows over all keys; text: causal runs."""
    tokens = v.shape[1]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        for j in range(tokens):
            if grid is None:
                seen[i, j] = i // side**2 == j // side**2 and j <= i
            elif i < prefix or j < prefix:
                seen[i, j] = True
            else:
                (ri, ci), (rj, cj) = divmod(i - prefix, grid[1]), divmod(j - prefix, grid[1])
                seen[i, j] = ri // side == rj // side and ci // side == cj // side
    weights = (_pairs(q, k) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v)
