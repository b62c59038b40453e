"""Selection of the teacher's units that a narrower student computes.

Units are chosen one by one: next comes the unit that explains most of the output of the teacher's
next map that the units chosen so far do not (forward selection by orthogonal least squares). A unit
that is nearly a combination of others is then chosen last, whatever its energy.

Axes: row, column (input of the next map), unit, entry (column of a unit), output.

Source:
    Chen, Billings and Luo 1989, "Orthogonal least squares methods and their application to
    non-linear system identification", International Journal of Control 50. Deviation: a unit may
    have several columns.
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_COLUMNS = 6144
"""Columns whose second moments are kept; of more, units are chosen by energy."""
RIDGE = 1e-6
"""Ridge relative to the mean variance of a column; dimensionless."""


@final
class UnitSelection:
    """Sums over rows from which units are chosen."""

    def __init__(self, columns: Int[Tensor, "unit entry"]) -> None:
        """Begin with no rows.

        Args:
            columns: Numbers of the columns of each unit.
        """
        self._columns = columns
        self._count = 0
        self._sums: list[Tensor] = []

    @property
    def _is_large(self) -> bool:
        return self._columns.numel() > MOST_COLUMNS

    def add(
        self, inputs: Float[Tensor, "row column"], outputs: Float[Tensor, "row output"]
    ) -> None:
        """Add the rows of a batch.

        Args:
            inputs: Input of the teacher's next map.
            outputs: Output of the next map.
        """
        # Units in the order of their columns.
        x, y = inputs.double()[:, self._columns.flatten()], outputs.double()
        sums = [x.sum(0), y.sum(0), x.square().sum(0) if self._is_large else x.mT @ x, x.mT @ y]
        totals = self._sums or [torch.zeros_like(total) for total in sums]
        self._sums = [total.add_(new) for total, new in zip(totals, sums, strict=True)]
        self._count += len(x)

    def energies(self, weight: Float[Tensor, "output column"]) -> Float[Tensor, " unit"]:
        """Return the variances of the columns times the norms of their contributions.

        Args:
            weight: The next map.
        """
        x, _, moments, _ = self._sums
        diagonal = moments if self._is_large else moments.diagonal()
        variances = (diagonal / self._count - (x / self._count).square()).clamp_min(0)
        norms = weight.double().square().sum(0)[self._columns]
        return (variances.view(self._columns.shape) * norms).sum(1)

    def chosen(self, number: int, weight: Float[Tensor, "output column"]) -> Int[Tensor, " chosen"]:
        """Return the numbers of some units, in ascending order.

        Args:
            number: Number of the units to choose.
            weight: The next map.
        """
        if self._is_large:
            return self.energies(weight).topk(number).indices.sort().values
        gram, products = self._covariances()
        units = torch.arange(self._columns.numel()).view(self._columns.shape)
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(units.shape[1], dtype=gram.dtype)
        # A Cholesky decomposition in blocks, the pivot of which is the unit that explains most.
        factor = gram.new_zeros(len(gram), 0)
        blocks, residuals = gram[units[:, :, None], units[:, None]] + ridge, products[units]
        selected = list[int]()
        for _ in range(number):
            gains = (residuals * torch.linalg.solve(blocks, residuals)).sum((1, 2))
            gains[selected] = -1
            unit = int(gains.argmax())
            selected.append(unit)
            panel = gram[:, units[unit]] - factor @ factor[units[unit]].mT
            root = torch.linalg.cholesky(blocks[unit])
            # Inputs and outputs, each times the inverse of the root.
            both = torch.cat([panel.mT, residuals[unit]], dim=1)
            both = torch.linalg.solve_triangular(root, both, upper=False)
            panel = both[:, : len(gram)].mT
            factor = torch.cat([factor, panel], dim=1)
            residuals = residuals - panel[units] @ both[:, len(gram) :]
            blocks = blocks - panel[units] @ panel[units].mT
            blocks[unit] += ridge
        return torch.tensor(selected).sort().values

    def _covariances(self) -> tuple[Tensor, Tensor]:
        """Return those of the columns, and of columns and outputs.

        A constant, which the student's map has as well, explains the means.
        """
        x, y, moments, products = (total / self._count for total in self._sums)
        return moments - torch.outer(x, x), products - torch.outer(x, y)
