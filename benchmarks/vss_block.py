"""A VSS block in three forms with the same parameters: as published, with flips, and with one call of scan2d."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mmmsv.kernels import Route, cross_merge, cross_scan, scan2d, selective_scan
from mmmsv.kernels.vmamba import Scans

ROUTES: dict[int, tuple[Route, ...]] = {
    0: ("row", "col", "row_rev", "col_rev"),
    1: ("row", "row", "row", "row"),
    2: ("row", "row", "row_rev", "row_rev"),
}


class Block(nn.Module):
    """A VSS block as published: a cross scan, one scan along sequences, a cross merge.

    Args:
        channels: Of the input, C; twice as many inside, D.
        rank: Of the step, R.
        state: Numbers in the state of a channel, N.
        scans: As for :func:`cross_scan`, but for 3.
        dtype: Of the parameters and the input.
    """

    def __init__(
        self, channels: int, rank: int, state: int, scans: Scans = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.rank, self.state, self.scans = rank, state, scans
        inner, generator = 2 * channels, torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype) / shape[-1] ** 0.5)

        self.in_proj_weight = weight(2 * inner, channels)
        self.conv2d_weight = weight(inner, 1, 3, 3)
        self.x_proj_weight = weight(4, rank + 2 * state, inner)
        self.dt_projs_weight = weight(4, inner, rank)
        self.dt_projs_bias = weight(4, inner)
        self.A_logs = nn.Parameter(torch.arange(1.0, state + 1, dtype=dtype).log().repeat(4 * inner, 1))
        self.Ds = weight(4 * inner)
        self.out_norm = nn.LayerNorm(inner, dtype=dtype)
        self.out_proj_weight = weight(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, H, W, C)`` for ``(batch, H, W, C)``."""
        x, z = (x @ self.in_proj_weight.T).chunk(2, -1)
        x = self.laid_out(x.permute(0, 3, 1, 2))
        x = silu(torch.conv2d(x, self.conv2d_weight, padding=1, groups=x.shape[1]))
        return (self.out_norm(self.scan(x)) * silu(z)) @ self.out_proj_weight.T

    def laid_out(self, x: Tensor) -> Tensor:
        """Return ``(batch, D, H, W)`` with the layout in memory that the scans take: token by token in each channel."""
        return x.contiguous()

    def scan(self, x: Tensor) -> Tensor:
        """Return ``(batch, H, W, D)`` for ``(batch, D, H, W)``: the sum over the routes."""
        batch, channels, height, width = x.shape
        xs = cross_scan(x, scans=self.scans)
        ys = self.scan_sequences(xs)
        y = cross_merge(ys.view(batch, 4, channels, height, width), scans=self.scans)
        return y.transpose(1, 2).reshape(batch, height, width, channels)

    def scan_sequences(self, xs: Tensor) -> Tensor:
        """Return ``(batch, 4, D, L)`` for ``(batch, 4, D, L)``."""
        batch, length = xs.shape[0], xs.shape[3]
        tokens = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight)
        dt, B, C = tokens.split([self.rank, self.state, self.state], 2)
        delta = torch.einsum("bkrl,kdr->bkdl", dt, self.dt_projs_weight)
        y = selective_scan(
            xs.reshape(batch, -1, length),
            delta.reshape(batch, -1, length),
            -torch.exp(self.A_logs),
            B,
            C,
            self.Ds,
            delta_bias=self.dt_projs_bias.flatten(),
            delta_softplus=True,
        )
        return y.view(xs.shape)


class FlippedBlock(Block):
    """The same block, with flips and concatenations in the place of the cross scan and merge."""

    def scan(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        forwards = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
        ys = self.scan_sequences(torch.cat([forwards, forwards.flip(-1)], dim=1))
        by_row, by_column = (ys[:, :2] + ys[:, 2:].flip(-1)).unbind(1)
        y = by_row.unflatten(2, (height, width)) + by_column.unflatten(2, (width, height)).transpose(2, 3)
        return y.permute(0, 2, 3, 1)


class ConvertedBlock(Block):
    """The same block, with one call of scan2d, as docs/use_the_scan.md converts it."""

    def laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def scan(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        dt, B, C = torch.einsum("bhwd,kcd->bhwkc", x, self.x_proj_weight).split([self.rank, self.state, self.state], -1)
        return scan2d(
            x,
            dt,
            B,
            C,
            self.dt_projs_weight,
            self.dt_projs_bias,
            -torch.exp(self.A_logs).unflatten(0, (4, -1)),
            self.Ds.unflatten(0, (4, -1)),
            ROUTES[self.scans],
        )
