"""Collect the gradients of the tasks in matrices, and give combined gradients to the parameters.

T tasks, R networks (1, or the number of replicas), P entries of the parameters of one network, N rows of a
table of learned vectors that a batch reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class TaskGradients:
    """Compute the gradients of losses, and give parameters their combined gradient.

    For a table with sparse gradients, the matrices hold only the rows that occur in the batch. These rows are
    the same for all tasks.

    Args:
        parameters: by name; with `num_networks` above 1 they are stacked, [R, ...].
        shared: for some names, a mask of the entries that several tasks share, in the shape of the parameter
            of one network. All entries of the others are shared.
        num_networks: R.
        sparse: the names of the tables with sparse gradients.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        shared: Mapping[str, Tensor],
        num_networks: int,
        sparse: Sequence[str] = (),
    ) -> None:
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        names = sorted(trained, key=lambda name: name in sparse)  # sparse ones last
        self.parameters = [parameters[name] for name in names]
        self.num_networks = num_networks
        self.num_dense = sum(name not in sparse for name in names)
        sizes = [p.numel() // num_networks for p in self.parameters[: self.num_dense]]
        self.device = self.parameters[0].device
        self.dtype = torch.promote_types(self.parameters[0].dtype, torch.float32)  # not half precision
        masks = [
            shared[name].flatten() if name in shared else torch.ones(size, dtype=torch.bool)
            for name, size in zip(names, sizes, strict=False)
        ]
        mask = torch.cat([torch.ones(0, dtype=torch.bool), *masks])
        self.mask = None if mask.all() else mask.to(self.device)  # of dense entries; None: all are shared
        # The rows [1, N] of the sparse gradient of each table in the last batch.
        self._rows = [torch.empty(1, 0, dtype=torch.long)] * (len(names) - self.num_dense)

    def jacobian(self, losses: Sequence[Tensor], keep_graph: bool = False) -> Tensor:
        """The gradients of each loss, [len(losses), R, P]. Each loss is the sum over all networks."""
        matrix = torch.empty(0)
        for i, loss in enumerate(losses):
            keep = keep_graph or i + 1 < len(losses)
            gradients = torch.autograd.grad(loss, self.parameters, retain_graph=keep, allow_unused=True)
            parts = self._dense(gradients) + self._sparse(gradients)
            if i == 0:
                width = sum(part.shape[1] for part in parts)
                shape = len(losses), self.num_networks, width
                matrix = torch.empty(shape, dtype=self.dtype, device=self.device)
            torch.cat([part.to(self.dtype) for part in parts], dim=1, out=matrix[i])
        return matrix

    def _dense(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        pairs = zip(self.parameters[: self.num_dense], gradients, strict=False)
        return [(torch.zeros_like(p) if g is None else g).reshape(self.num_networks, -1) for p, g in pairs]

    def _sparse(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        parts = []
        for i, table in enumerate(self.parameters[self.num_dense :]):
            gradient = gradients[self.num_dense + i]
            if gradient is None:  # for example, for a penalty that is independent of the inputs
                values = table.new_zeros(self._rows[i].shape[1], table.shape[1])
            else:
                gradient = gradient.coalesce()
                self._rows[i], values = gradient.indices(), gradient.values()
            parts.append(values.reshape(1, -1))
        return parts

    def shared(self, jacobian: Tensor) -> Tensor:
        """Gradients [T, R, P] with zeros in the entries that only one task reaches, as [R, T, P]."""
        if self.mask is not None:
            jacobian = jacobian * self._mask_of(jacobian)  # ten times as fast as index_select
        return jacobian.transpose(0, 1)

    def put(self, total: Tensor, network: int, vector: Tensor) -> None:
        """Replace the shared entries of one network in `total` [R, P] by those of a vector [P]."""
        if self.mask is None:
            total[network] = vector
        else:
            total[network] = torch.where(self._mask_of(total), vector, total[network])

    def _mask_of(self, matrix: Tensor) -> Tensor:
        """The mask [P] of the shared entries. All entries of tables are shared."""
        assert self.mask is not None
        return pad(self.mask, (0, matrix.shape[-1] - len(self.mask)), value=True)

    def accumulate(self, total: Tensor) -> None:
        """Add gradients [R, P] to those of the parameters."""
        dense = self.parameters[: self.num_dense]
        sizes = [p.numel() // self.num_networks for p in dense]
        tables: list[Any] = self.parameters[self.num_dense :]
        sizes += [rows.shape[1] * t.shape[1] for t, rows in zip(tables, self._rows, strict=True)]
        parts = torch.split(total, sizes, dim=1)
        for parameter, part in zip(dense, parts, strict=False):
            # Fused optimizers misread gradients that are not contiguous.
            _add(parameter, part.reshape(parameter.shape).to(parameter.dtype).contiguous())
        for table, rows, part in zip(tables, self._rows, parts[self.num_dense :], strict=True):
            values = part.reshape(-1, table.shape[1]).to(table.dtype)
            options: Any = {"is_coalesced": True, "check_invariants": False}
            _add(table, torch.sparse_coo_tensor(rows, values, table.shape, **options))


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
